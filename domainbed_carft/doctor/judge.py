"""From the facts of the probe to findings: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.doctor import remedies
from domainbed_carft.doctor.findings import SECTIONS, Facts, Finding, State
from domainbed_carft.plugin import SWITCH

LOW_SPACE = 1e9  # bytes
# CVE-2026-24747 and CVE-2025-32434; the code of the second is refused by `weights.load_weights`.
OLD_TORCH = (
    "a stranger's file of weights may corrupt memory (before torch 2.10) or, in programs other "
    "than ours, run code (before 2.6)"
)
# The default backbones, of small and of all other data sets, see `hparams`.
EXPECTED = ("tiny", "ViT-B/16")


def diagnose(facts: Facts, ending: str) -> list[Finding]:
    """All findings. ``ending`` is how the probe ended before it was through, "" if it was."""
    findings: list[Finding] = []
    for section in SECTIONS:
        if section not in facts:
            findings.append(_unreached(section, ending))
            break
        try:
            findings += _judged(section, facts, findings)
        except Exception as error:  # a doctor that fails is a finding, too
            found = f"not understood ({type(error).__name__}: {error}): {facts[section]}"
            findings.append(Finding(section, "problem", found, remedies.REPORT))
    return findings


def _judged(section: str, facts: Facts, before: Sequence[Finding]) -> list[Finding]:
    own = facts[section]
    failed = isinstance(own, dict) and own.keys() == {"error", "missing"}
    if section in ("algorithms", "step") and failed and _spoilt(before):
        return [Finding(section, "note", "not looked at, see above", remedies.ABOVE)]
    if failed:
        return [Finding(section, "problem", own["error"], remedies.for_section(own))]
    return JUDGES[section](own, facts)


def _spoilt(before: Sequence[Finding]) -> bool:
    """Whether a job fails for a reason already found, so that its own failure says nothing."""
    causes = ("hook", "imports", "domainbed", "algorithms")
    return any(f.state == "problem" and f.name.startswith(causes) for f in before)


def _unreached(section: str, ending: str) -> Finding:
    found = f"a fresh interpreter {ending or 'ended too early'} while it looked at this"
    if section == SECTIONS[0]:
        return Finding(section, "problem", found, remedies.INSTALL_HERE)
    return Finding(section, "problem", found, remedies.BY_HAND)


def _python(own: Facts, facts: Facts) -> list[Finding]:
    found = f"{own['version']}, {own['executable']}"
    foreign = (facts.get("domainbed") or {}).get("ours") is False
    if foreign and not own["command_is_this"]:
        found += "; the jobs of a sweep call it 'python', which here is "
        found += f"{own['command']}, another environment" if own["command"] else "nothing"
        return [Finding("python", "note", found, remedies.activate(own["executable"]))]
    return [Finding("python", "ok", found)]


def _versions(own: Facts, facts: Facts) -> list[Finding]:
    findings = [Finding("versions", "ok", ", ".join(f"{d} {v}" for d, v in own.items() if v))]
    number = re.match(r"(\d+)\.(\d+)", own["torch"] or "")
    if number and (int(number[1]), int(number[2])) < (2, 10):
        findings.append(Finding("torch", "note", OLD_TORCH, remedies.NEW_TORCH))
    return findings


def _hook(own: Facts, facts: Facts) -> list[Finding]:
    files = " and ".join(own["start_files"])
    if own["active"]:
        return [Finding("hook", "ok", f"active in a fresh interpreter{files and ', by '}{files}")]
    if own["switch"] is not None:
        found = f"not active: {SWITCH} is {own['switch']!r}"
        return [Finding("hook", "problem", found, f"unset {SWITCH}")]
    if files:
        found = f"not active, although {files} is there: domainbed_carft could not be imported yet"
    else:
        searched = ", ".join(own["site_packages"])
        found = (
            f"not active: domainbed_carft is used from {own['package']}, and Python runs start "
            f"files only from {searched}, where domainbed_carft.pth is missing (as it is after "
            "pip install --target, or with the source on PYTHONPATH)"
        )
    return [Finding("hook", "problem", found, remedies.install(own["package"]))]


def _cache(own: Facts, facts: Facts) -> list[Finding]:
    if own["error"]:
        found = f"{own['path']} cannot be written ({own['error']})"
        return [Finding("cache", "problem", found, remedies.CACHE)]
    found = f"{own['path']}, writable, {own['free'] / 1e9:.1f} GB free"
    if own["free"] < LOW_SPACE:
        return [Finding("cache", "note", found, remedies.CACHE)]
    return [Finding("cache", "ok", found)]


def _imports(own: Facts, facts: Facts) -> list[Finding]:
    failures = {distribution: failure for distribution, failure in own.items() if failure}
    if not failures:
        return [Finding("imports", "ok", ", ".join(own))]
    return [
        Finding(f"imports {d}", "problem", _import_failure(f), remedies.for_import(d, f))
        for d, f in failures.items()
    ]


def _import_failure(failure: Facts) -> str:
    found = f"import of {failure['module']} fails: {failure['error']}"
    # Without its place one would look for the wrong package of that name in vain.
    return f"{found} (found: {failure['path']})" if failure["path"] else found


def _domainbed(own: Facts, facts: Facts) -> list[Finding]:
    if own["path"] is None:
        found = f"none found from {(facts.get('python') or {}).get('folder')}"
        return [Finding("domainbed", "problem", found, remedies.NO_DOMAINBED)]
    return [_host(own, facts), *_host_failures(own)]


def _host(own: Facts, facts: Facts) -> Finding:
    found = f"{'ours, the harness' if own['ours'] else 'foreign'}: {own['path']}"
    if own["commit"]:
        found += f", commit {own['commit']}"
        found += " with uncommitted changes" if own["modified"] else ""
    python = facts.get("python") or {}
    shadowed = Path(python.get("folder", "")) / "domainbed"
    if python.get("folder_on_path") is False and shadowed.is_dir():
        found += f"; {shadowed} is not looked at, since PYTHONSAFEPATH is set"
        return Finding("domainbed", "note", found, "unset PYTHONSAFEPATH if you mean that one")
    if not own["train"] and not own["failures"]:
        found += "; it has no domainbed.scripts.train"
        return Finding("domainbed", "note", found, remedies.own_script(own["scripts"]))
    return Finding("domainbed", "ok", found)


def _host_failures(own: Facts) -> list[Finding]:
    """One finding a cause: what is missing, a part of domainbed say, is missed by several."""
    causes: dict[str, Facts] = {}
    for failure in own["failures"].values():
        incomplete = (failure["missing"] or "").startswith("domainbed")
        causes.setdefault("domainbed" if incomplete else failure["error"], failure)
    return [
        Finding(
            "domainbed",
            "problem",
            f"import of {failure['module']} fails: {failure['error']}",
            remedies.for_host(failure, own),
        )
        for failure in causes.values()
    ]


def _algorithms(own: Facts, facts: Facts) -> list[Finding]:
    ours = [name for name, module in own.items() if module == "domainbed_carft.method.algorithms"]
    absent = [name for name, module in own.items() if module is None]
    hosts = [name for name in own if name not in ours and name not in absent]
    said = " ".join(facts["domainbed"]["warnings"])
    if not facts["hook"]["active"] and not ours:
        return [Finding("algorithms", "note", "not there without the hook", remedies.ABOVE)]
    if absent:
        found = f"{', '.join(absent)} unknown to domainbed.algorithms. {said}".strip()
        return [Finding("algorithms", "problem", found, remedies.EXTENSION)]
    if hosts:
        found = f"{', '.join(hosts)} will be domainbed's own, not ours. {said}".strip()
        # Whoever asks for CARFT would train something else without knowing.
        state: State = "problem" if "CARFT" in hosts else "note"
        return [Finding("algorithms", state, found, remedies.own_classes(hosts))]
    if said:
        return [Finding("algorithms", "note", f"{', '.join(ours)}. {said}", remedies.EXTENSION)]
    return [Finding("algorithms", "ok", ", ".join(ours))]


def _device(own: Facts, facts: Facts) -> list[Finding]:
    if own["gpus"]:
        found = "; ".join(
            f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB, bf16 {_native(gpu['bf16'])}"
            for gpu in own["gpus"]
        )
        return [Finding("device", "ok", found)]
    found = f"CPU, {own['cores']} cores, {own['threads']} threads, bf16 {_native(own['bf16'])}"
    if own["torch_cuda"]:
        found += f"; torch is built for CUDA {own['torch_cuda']}, but sees no GPU"
        return [Finding("device", "note", found, remedies.NO_GPU)]
    if own["nvidia_driver"]:
        found += "; there is an NVIDIA driver, but torch is a build without CUDA"
        return [Finding("device", "note", found, remedies.CPU_TORCH)]
    return [Finding("device", "ok", found)]


def _native(bf16: bool | None) -> str:
    return {True: "native", False: "emulated", None: "unknown"}[bf16]


def _backbones(own: Sequence[Facts], facts: Facts) -> list[Finding]:
    absent = [weights for weights in own if weights["size"] is None]
    findings = [_weights(weights) for weights in own if weights["size"] is not None]
    findings += [_weights(weights) for weights in absent if weights["name"] in EXPECTED]
    others = [weights["name"] for weights in absent if weights["name"] not in EXPECTED]
    if others:
        folder = os.path.dirname(absent[-1]["path"])
        found = f"not in {folder}: {', '.join(others)}"
        findings.append(Finding("backbones", "note", found, remedies.DOWNLOADED))
    return findings


def _weights(weights: Facts) -> Finding:
    name, path = f"backbone {weights['name']}", weights["path"]
    if weights["size"] is None and weights["name"] != "tiny":
        found = f"not at {path}; it is the default of all data sets but EmojiStyles"
        return Finding(name, "note", found, remedies.fetch(weights))
    if weights["size"] is None or weights["digest"] is None:
        found = f"{path} {'is missing' if weights['size'] is None else 'cannot be read'}"
        return Finding(name, "problem", found, remedies.renew(weights))
    size = f"{weights['size'] / 1e6:.1f} MB"
    if weights["digest"] != weights["expected"]:
        found = (
            f"{path} ({size}) is damaged or another file: its SHA-256 is {weights['digest']}, "
            f"expected {weights['expected']}"
        )
        # No job needs the others, unless it asks for them.
        state: State = "problem" if weights["name"] in EXPECTED else "note"
        return Finding(name, state, found, remedies.renew(weights))
    return Finding(name, "ok", f"{path}, {size}, SHA-256 as published")


def _step(own: Facts, facts: Facts) -> list[Finding]:
    where = {"cuda": "the GPU", "cpu": "the CPU"}[own["device"]]
    found = f"one CARFT step on {where}: loss {own['loss']:.3f}, {own['seconds']:.1f} s in all"
    return [Finding("step", "ok", found)]


JUDGES: dict[str, Callable[[Any, Facts], list[Finding]]] = {
    "python": _python,
    "versions": _versions,
    "hook": _hook,
    "cache": _cache,
    "imports": _imports,
    "domainbed": _domainbed,
    "algorithms": _algorithms,
    "device": _device,
    "backbones": _backbones,
    "step": _step,
}
