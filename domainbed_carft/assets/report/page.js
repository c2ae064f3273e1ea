// Turn headers into buttons that sort their table, add buttons that copy commands, and mark tables that scroll.
// The page works without this script, but its tables cannot be sorted.
"use strict";
for (const block of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${block.querySelector("pre").getAttribute("aria-label")}`);
  button.addEventListener("click", () => copy(block.querySelector("code").textContent.trimEnd(), button));
  block.append(button);
}
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // in an old browser, or without permission
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  document.getElementById("status").textContent = "Copied to the clipboard";
}
const watched = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth + 1);
});
for (const region of document.querySelectorAll(".wide")) watched.observe(region);
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => sort(table, headers, column));
  });
}
function sort(table, headers, column) {
  const header = headers[column];
  const numeric = isNumeric(table, column);
  // Numbers start with the highest, names with A.
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].textContent.trim());
    if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
    const [p, q] = [parseFloat(x), parseFloat(y)];
    if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q); // cells without a value come last
    return sign * (p - q);
  });
  table.tBodies[0].append(...rows);
  headers.forEach((cell) => cell.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  document.getElementById("status").textContent =
    `${table.caption.textContent}: sorted by ${header.textContent}, ${order}`;
}
function isNumeric(table, column) {
  const texts = [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
  const number = /^[+-]?\d+(\.\d+)?( ± .*| \[\d+\])?$/;
  const nothing = /^(X( \[\d+\])?)?$/;
  return texts.some((text) => number.test(text))
    && texts.every((text) => number.test(text) || nothing.test(text));
}
