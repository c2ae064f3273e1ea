"""As much of W&B's server as its client needs to log runs, to go on with them and to sync them.

What it keeps of a run is what the client has sent. The client is the real one.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40


class Run:
    """One run, by what was sent for it."""

    def __init__(self) -> None:
        self.project = self.name = self.group = None
        self.config: dict[str, Any] = {}
        self.lines: dict[int, str] = {}  # of wandb-history.jsonl, by number

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their lines."""
        return [json.loads(self.lines[number]) for number in sorted(self.lines)]

    def upsert(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.project = sent.get("project") or self.project
        self.name = sent.get("displayName") or self.name
        self.group = sent.get("groupName") or self.group
        for name, entry in json.loads(sent.get("config") or "{}").items():
            self.config[name] = entry["value"]
        entity = {"id": "e", "name": "someone"}
        return {
            "id": "run",
            "name": sent["name"],
            "displayName": self.name,
            "project": {"id": "p", "name": self.project, "entity": entity},
            "historyLineCount": len(self.lines),
        }

    def resume_status(self, run_id: str) -> dict[str, Any] | None:
        if not self.lines:
            return None
        last = json.dumps([self.lines[max(self.lines)]])
        return {
            "id": "run",
            "name": run_id,
            "displayName": self.name,
            "summaryMetrics": self.lines[max(self.lines)],
            "logLineCount": 0,
            "historyLineCount": len(self.lines),
            "eventsLineCount": 0,
            "historyTail": last,
            "eventsTail": "[]",
            "config": json.dumps({name: {"value": value} for name, value in self.config.items()}),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),  # it has been begun
        }


class Server:
    """Runs by their id, and the address to give as WANDB_BASE_URL."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.url = ""

    def answer(self, operation: str, sent: dict[str, Any]) -> dict[str, Any]:
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in sent["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if operation == "UpsertBucket":
            inserted = sent["name"] not in self.runs
            run = self.runs.setdefault(sent["name"], Run())
            return {"upsertBucket": {"bucket": run.upsert(sent), "inserted": inserted}}
        if operation == "RunResumeStatus" and sent["name"] in self.runs:
            status = self.runs[sent["name"]].resume_status(sent["name"])
            entity = {"id": "e", "name": "someone"}
            return {"model": {"id": "p", "name": "p", "entity": entity, "bucket": status}}
        return {}

    def stream(self, run_id: str, sent: dict[str, Any]) -> None:
        rows = sent.get("files", {}).get("wandb-history.jsonl")
        if rows:
            run = self.runs[run_id]
            for number, line in enumerate(rows["content"], start=rows["offset"]):
                run.lines[number] = line


@contextlib.contextmanager
def serving(server: Server, port: int = 0) -> Iterator[int]:
    """Serve on this machine while the block runs; the value is the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                answer["data"] = server.answer(asked["operationName"], asked.get("variables") or {})
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    listening = Listening(("127.0.0.1", port), Handler)
    server.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield listening.server_port
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
