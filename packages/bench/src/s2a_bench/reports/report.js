// Sorts tables by a column and hides methods or datasets. The page is whole without it.
"use strict";
(() => {
  // Cells as numbers, a dash as nothing; text where a column holds no numbers, or its heading says so. A number is a
  // whole word: an id such as 12ab is none.
  const read = (row, index) => {
    const parts = [...row.cells[index].childNodes].filter((node) => node.nodeName !== "svg");
    const text = parts.map((node) => node.textContent).join("").replaceAll(",", "").trim();
    const number = /^[-+]?[0-9][0-9.]*(?![\w.])/.test(text) ? parseFloat(text) : NaN;
    return { text, number };
  };
  const sort = (table, index, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: read(row, index) }));
    const asText = table.tHead.rows[0].cells[index].dataset.sort === "text";
    const numbers = !asText && rows.some(({ value }) => !Number.isNaN(value.number));
    rows.sort((a, b) => {
      if (!numbers) return direction * a.value.text.localeCompare(b.value.text);
      const [x, y] = [a.value.number, b.value.number];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return direction * (x - y);
    });
    body.append(...rows.map(({ row }) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") !== "descending" && index > 0;
        const again = index === 0 && heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending || again ? "descending" : "ascending");
        sort(table, index, descending || again ? -1 : 1);
      });
    });
  }
  // A list of boxes per kind; what is not ticked is hidden in every table. Names only travel as text.
  const filter = document.createElement("details");
  const title = document.createElement("summary");
  title.textContent = "Choose methods and datasets";
  filter.className = "filter";
  filter.append(title);
  for (const [kind, plural] of [["method", "Methods"], ["dataset", "Datasets"]]) {
    const marked = [...document.querySelectorAll(`[data-${kind}]`)];
    const names = [...new Set(marked.map((element) => element.dataset[kind]))];
    if (names.length < 2) continue;
    const shown = new Set(names);
    const boxes = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = plural;
    boxes.append(legend);
    const update = () => {
      for (const element of marked) element.classList.toggle(`no-${kind}`, !shown.has(element.dataset[kind]));
    };
    for (const name of names) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        box.checked ? shown.add(name) : shown.delete(name);
        update();
      });
      label.append(box, ` ${name}`);
      boxes.append(label);
    }
    filter.append(boxes);
  }
  const note = document.createElement("p");
  note.className = "soft small";
  note.textContent = "Hides rows and columns of tables. Means and marks stay those of everything.";
  filter.append(note);
  if (filter.querySelector("fieldset")) document.getElementById("filter").append(filter);
})();
