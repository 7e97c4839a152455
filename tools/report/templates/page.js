"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

  // Sort complete tables by a click on a heading
  const markSorted = (heads, chosen, descending) => {
    for (const head of heads) head.removeAttribute("aria-sort");
    chosen.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  const cellValue = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, ""));
    return row.cells[column].classList.contains("n") ? (Number.isNaN(number) ? -Infinity : number) : text;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("n")
        || head.getAttribute("aria-sort") === "ascending";
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => compare(cellValue(a, column), cellValue(b, column)) * (descending ? -1 : 1));
      body.append(...sorted);
      markSorted(heads, head, descending);
    }));
  }

  // Filter texts with marked entities by error type
  for (const select of document.querySelectorAll(".gallery-filter")) {
    select.addEventListener("change", () => {
      for (const card of select.closest("section").querySelectorAll(".drawn")) {
        card.hidden = select.value !== "" && !card.dataset.verdicts.split(" ").includes(select.value);
      }
    });
  }

  // Draw an arrow from subject to object for each relation listed under a text
  const drawArcs = (side) => {
    side.querySelector("svg.arcs")?.remove();
    const origin = side.getBoundingClientRect(), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const marks = new Map([...side.querySelectorAll("mark")].reverse().map((mark) => [mark.querySelector(":scope > b")?.textContent, mark]));
    for (const triple of side.querySelectorAll(".triple")) {
      const boxes = [...triple.querySelectorAll("sub")].map((end) => marks.get(end.textContent)?.getClientRects()[0]);
      if (boxes.includes(undefined)) continue;  // outside the excerpt
      const [one, other] = boxes, down = other.top >= one.bottom, up = other.bottom <= one.top;
      const [x, u] = boxes.map((box) => box.left + box.width / 2 - origin.left);
      const y = (down ? one.bottom : one.top) - origin.top, v = (up ? other.bottom : other.top) - origin.top;
      const rise = down ? -12 : up ? 12 : Math.min(14, 5 + Math.abs(x - u) / 12), tip = up ? 5 : -5;
      const path = document.createElementNS(svg.namespaceURI, "path");
      path.setAttribute("d", `M${x},${y}C${x},${y - rise} ${u},${v - Math.abs(rise) * (up ? -1 : 1)} ${u},${v}m-3,${tip}l3,${-tip}l3,${tip}`);
      path.setAttribute("class", triple.className);
      svg.append(path);
    }
    svg.setAttribute("class", "arcs");
    side.append(svg);
  };
  const sides = new ResizeObserver((entries) => entries.forEach((entry) => drawArcs(entry.target)));
  for (const side of document.querySelectorAll(".related")) sides.observe(side);

  // Highlight the current section in the navigation
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  }, { rootMargin: "-64px 0px -75% 0px" });
  for (const section of document.querySelectorAll("section")) watcher.observe(section);

  // The table of rows
  if (!byId("table-data")) return;
  const data = read("table-data"), names = read("names"), size = 50;
  const several = data.tasks.length > 1;
  const columns = [
    { name: names.part, of: (row) => names[row[0]] ?? row[0] },
    { name: names.id, of: (row) => row[1] },
    { name: names.text, kind: "text", of: (row) => row[2] },
  ];
  data.tasks.forEach((task, i) => {
    const prefix = several ? task + " · " : "";
    columns.push({ name: prefix + names.gold, of: (row) => row[4][i][0] });
    (data.runs ?? [names.predicted]).forEach((run, j) => {
      columns.push({ name: prefix + run, of: (row) => row[4][i][1][j][0], right: (row) => row[4][i][1][j][1] });
      if (!data.runs) columns.push({ name: prefix + names.confidence, kind: "n", of: (row) => row[4][i][1][j][2] });
    });
  });
  const state = { page: 0, column: null, descending: false, shown: data.rows };
  const head = document.querySelector("#rows-table thead tr"), body = document.querySelector("#rows-table tbody");
  const search = byId("search"), label = byId("label"), verdict = byId("verdict");
  const searched = data.rows.map((row) => [row[1], row[2], ...row[4].flat(3)].join("\n").toLowerCase());

  data.labels.map(([task, name], i) => [several ? task + ": " + name : name, i]).sort((a, b) => compare(a[0], b[0]))
    .forEach(([name, i]) => label.add(new Option(name, String(i))));
  columns.forEach((column) => {
    const cell = document.createElement("th");
    cell.textContent = column.name;
    if (column.kind === "n") cell.className = "n";
    cell.addEventListener("click", () => {
      state.descending = state.column === column && !state.descending;
      state.column = column;
      markSorted(head.cells, cell, state.descending);
      choose();
    });
    head.append(cell);
  });

  const matches = (row, i) => (!search.value || searched[i].includes(search.value.toLowerCase()))
    && (!label.value || row[5].includes(Number(label.value)))
    && (!verdict.value || String(row[3]) === verdict.value);

  function choose() {
    const found = data.rows.map((row, i) => [row, i]).filter(([row, i]) => matches(row, i)).map(([row]) => row);
    if (state.column) {
      const of = state.column.of, sign = state.descending ? -1 : 1;
      const known = found.filter((row) => of(row) !== null), unknown = found.filter((row) => of(row) === null);
      state.shown = [...known.sort((a, b) => sign * compare(of(a), of(b))), ...unknown];
    } else {
      state.shown = found;
    }
    state.page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(state.shown.length / size)), start = state.page * size;
    body.replaceChildren(...state.shown.slice(start, start + size).map((row) => {
      const line = document.createElement("tr");
      for (const column of columns) {
        const cell = line.insertCell(), value = column.of(row);
        cell.textContent = value === null ? "–" : column.kind === "n" ? value.toFixed(4) : value;
        cell.className = column.kind ?? "";
        const right = column.right?.(row) ?? null;
        if (right !== null) cell.classList.add(right ? "ok" : "bad");
      }
      return line;
    }));
    byId("found").textContent = state.shown.length.toLocaleString() + " " + byId("found").dataset.word;
    byId("page").textContent = state.page + 1 + " / " + pages;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page + 1 >= pages;
  }
  search.addEventListener("input", choose);
  label.addEventListener("change", choose);
  verdict.addEventListener("change", choose);
  byId("previous").addEventListener("click", () => { state.page -= 1; draw(); });
  byId("next").addEventListener("click", () => { state.page += 1; draw(); });
  choose();
})();
