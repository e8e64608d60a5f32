"use strict";
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
const controls = document.getElementById("controls");
if (controls) {
  const list = document.getElementById("gallery");
  const value = (id) => document.getElementById(id).value;
  const update = () => {
    const [actual, called, least, order] = ["by-class", "by-prediction", "by-confidence", "order"].map(value);
    const key = order.replace("-", "");
    const items = [...list.children];
    const byName = (a, b) => a.dataset[key].localeCompare(b.dataset[key]) || b.dataset.confidence - a.dataset.confidence;
    items.sort(["name", "class"].includes(key) ? byName : (a, b) => b.dataset[key] - a.dataset[key]);
    if (order[0] === "-") items.reverse();
    let shown = 0;
    for (const item of items) {
      const data = item.dataset;
      item.hidden = Boolean(
        (actual && data.class !== actual) || (called && data.prediction !== called) || data.confidence < least / 100
      );
      shown += !item.hidden;
      list.append(item);
    }
    document.getElementById("confidence").textContent = `${least}%`;
    document.getElementById("shown").textContent = `${shown} of ${items.length} images`;
  };
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
}
