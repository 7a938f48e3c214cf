// Charts: the values under the pointer.
for (const svg of document.querySelectorAll(".chart[data-series]")) {
  const series = Object.entries(JSON.parse(svg.dataset.series)).filter(([, points]) => points.length);
  if (!series.length) continue;
  const [first, last, left, right] = JSON.parse(svg.dataset.frame);
  const readout = svg.closest("figure").querySelector("output");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", 14);
  cursor.setAttribute("y2", svg.viewBox.baseVal.height - 26);

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const wanted = first + ((x - left) / (right - left)) * (last - first);
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
    const found = series.map(([, points]) => near(points));
    const at = left + ((found[0][0] - first) / Math.max(last - first, 1)) * (right - left);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    svg.append(cursor);
    readout.textContent = `update ${found[0][0]}: ` + found.map(([, y]) => Number(y.toPrecision(3))).join(", ");
  });
  svg.addEventListener("pointerleave", () => { cursor.remove(); readout.textContent = ""; });
}
