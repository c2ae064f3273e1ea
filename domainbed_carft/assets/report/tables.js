// Headers become buttons that sort their table; without this script the tables are just not sorted.
"use strict";
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
  // Numbers are asked for from the highest on, names from A on.
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].textContent.trim());
    if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
    const [p, q] = [parseFloat(x), parseFloat(y)];
    if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q); // what has no value comes last
    return sign * (p - q);
  });
  table.tBodies[0].append(...rows);
  headers.forEach((one) => one.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  document.getElementById("sorted").textContent =
    `${table.caption.textContent}: sorted by ${header.textContent}, ${order}`;
}
function isNumeric(table, column) {
  const texts = [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
  const number = /^[+-]?\d+(\.\d+)?( ± .*| \[\d+\])?$/;
  const nothing = /^(X( \[\d+\])?)?$/;
  return texts.some((text) => number.test(text))
    && texts.every((text) => number.test(text) || nothing.test(text));
}
