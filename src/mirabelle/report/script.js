(() => {
  const key = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === "number" ? -1 : typeof b === "number" ? 1
        : a.localeCompare(b, undefined, { numeric: true });
  for (const table of document.querySelectorAll("table.sortable, table[data-sortable]")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const known = rows.filter((r) => key(r, i) !== "");
        known.sort((a, b) => (up ? 1 : -1) * compare(key(a, i), key(b, i)));
        body.append(...known, ...rows.filter((r) => key(r, i) === ""));
      });
    });
    const label = document.createElement("label"), field = document.createElement("input");
    const count = document.createElement("output");
    field.type = "search";
    label.className = "search";
    label.append("Search ", field, " ", count);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      count.value = words.length ? `${shown} of ${rows.length}` : "";
    });
    table.parentElement.before(label);
  }
})();
