// A face on which a mask is dragged about. Pictures come in messages, never in the state of the widget, so that a saved
// notebook does not hold them. See MaskStage in widgets.py for what the messages are.

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.02; // of the picture's side, for a key

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function render({ model, el }) {
  const page = element("div", "fag fag-mask");
  const view = element("div", "fag-mask-view");
  view.tabIndex = 0;
  view.setAttribute("role", "application");
  view.setAttribute("aria-label", "A face in a mask. Drag the mask, or move it with the arrow keys.");
  const image = element("img");
  image.draggable = false;
  image.alt = "a face in a mask";
  view.append(image);
  const side = element("div", "fag-mask-side");
  const hint = element("p", "fag-hint", "Drag the mask, or move it with the arrow keys.");
  const answers = element("div", "fag-scroll");
  answers.setAttribute("aria-live", "polite");
  side.append(answers, hint);
  page.append(view, side);
  el.append(page);

  // One message at a time: while the program draws, only the last place is kept.
  let place = [0, 0];
  let waiting = false;
  let late = false;
  function tell() {
    if (waiting) {
      late = true;
      return;
    }
    waiting = true;
    model.send({ kind: "move", right: place[0], down: place[1] });
  }

  let start = null;
  view.addEventListener("pointerdown", (event) => {
    view.setPointerCapture(event.pointerId);
    start = { x: event.clientX, y: event.clientY, place: [...place] };
    view.classList.add("fag-held");
    event.preventDefault();
    view.focus({ preventScroll: true });
  });
  view.addEventListener("pointermove", (event) => {
    if (!start) return;
    const size = image.getBoundingClientRect().width || 1;
    place = [start.place[0] + (event.clientX - start.x) / size, start.place[1] + (event.clientY - start.y) / size];
    tell();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    view.addEventListener(end, () => {
      start = null;
      view.classList.remove("fag-held");
    });
  }
  view.addEventListener("keydown", (event) => {
    const way = KEYS[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    place = [place[0] + STEP * way[0], place[1] + STEP * way[1]];
    tell();
  });

  function receive(message, buffers) {
    if (message.kind !== "face") return;
    if (!start || message.reset) place = [message.right, message.down];
    const old = image.src;
    image.src = URL.createObjectURL(new Blob([buffers[0]], { type: "image/jpeg" }));
    if (old) image.addEventListener("load", () => URL.revokeObjectURL(old), { once: true });
    const table = element("table", "fag-table");
    const head = element("tr");
    for (const name of message.columns) head.append(element("th", "", name));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    for (const cells of message.rows) {
      const row = element("tr");
      for (const cell of cells) row.append(element("td", "", cell));
      table.tBodies[0].append(row);
    }
    answers.replaceChildren(table);
    waiting = false;
    if (late) {
      late = false;
      tell();
    }
  }

  model.on("msg:custom", receive);
  model.send({ kind: "ready" });
  return () => model.off("msg:custom", receive);
}

export default { render };
