"use strict";
// Tables: a click on a column's head sorts by it, a second one the other way round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const first = head.classList.contains("n") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const cell of head.parentElement.children) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
    const numeric = head.classList.contains("n");
    const compare = (a, b) => {
      if (!numeric) return key(a).localeCompare(key(b), undefined, { numeric: true });
      if (key(a) === "" || key(b) === "") return 0; // placed below
      return Number(key(a)) - Number(key(b));
    };
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows];
    const empty = numeric ? rows.filter((row) => key(row) === "") : [];
    const filled = rows.filter((row) => !empty.includes(row)).sort((a, b) => sign * compare(a, b));
    body.append(...filled, ...empty);
  });
}

// Confusion matrices: what the cell under the pointer, or under the arrow keys, stands for.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg.matrix")) {
  const data = JSON.parse(document.getElementById(svg.dataset.of).textContent);
  const start = Number(svg.dataset.start), cell = Number(svg.dataset.cell), n = data.names.length;
  const [rowBand, columnBand] = svg.querySelectorAll(".at");
  let at = null;
  const place = (band, x, y, width, height) => {
    for (const [name, value] of Object.entries({ x, y, width, height })) band.setAttribute(name, value);
  };
  const leave = () => {
    tip.hidden = true;
    place(rowBand, 0, 0, 0, 0);
    place(columnBand, 0, 0, 0, 0);
  };
  const show = (row, column) => {
    at = [row, column];
    const count = data.counts[row][column], support = data.support[row];
    const share = support ? ` (${(100 * count / support).toFixed(1)} %)` : "";
    tip.textContent = `true: ${data.names[row]}\npredicted: ${data.names[column]}\n` +
      `${count} of ${support} clip${support === 1 ? "" : "s"}${share}`;
    tip.hidden = false;
    place(rowBand, start, start + row * cell, n * cell, cell);
    place(columnBand, start + column * cell, start, cell, n * cell);
    const corner = new DOMPoint(start + (column + 1) * cell, start + (row + 1) * cell).matrixTransform(svg.getScreenCTM());
    const { width, height } = tip.getBoundingClientRect();
    const left = corner.x + width + 12 > innerWidth ? corner.x - width - cell - 12 : corner.x + 8;
    const top = corner.y + height + 12 > innerHeight ? corner.y - height - cell - 12 : corner.y + 8;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const column = Math.floor((point.x - start) / cell), row = Math.floor((point.y - start) / cell);
    if (row >= 0 && column >= 0 && row < n && column < n) show(row, column);
    else leave();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !n) return;
    event.preventDefault();
    const next = at ? [at[0] + step[0], at[1] + step[1]] : [0, 0];
    show(...next.map((value) => Math.min(n - 1, Math.max(0, value))));
  });
}
