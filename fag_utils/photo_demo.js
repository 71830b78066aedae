// The page of the photo demo. Pictures come and go in messages, never in the state of the widget, so that a saved
// notebook does not hold them. See widgets.py for what the messages are.

const SLICE = 1 << 20; // bytes: a server takes messages of 10 MB at most, and a photograph may be larger

const CAMERA = {
  NotAllowedError: "The browser did not allow the camera. Allow it for this page (the sign beside the address), and try again.",
  NotFoundError: "No camera was found. Connect one, or choose a file.",
  NotReadableError: "The camera is in use by another program. Close that, and try again.",
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, className, act) {
  const made = element("button", `fag-button ${className}`, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function picture(buffer, type, alt) {
  const made = element("img");
  made.src = URL.createObjectURL(new Blob([buffer], { type }));
  made.alt = alt;
  made.addEventListener("load", () => URL.revokeObjectURL(made.src), { once: true });
  return made;
}

function render({ model, el }) {
  const page = element("div", "fag");
  const status = element("div", "fag-status");
  status.setAttribute("role", "status");
  const cards = element("div", "fag-cards");
  const drop = element("div", "fag-drop");
  page.append(drop, status, cards);
  el.append(page);

  // --- sending: one file after the other, each in slices

  let answered = () => {};
  let sending = Promise.resolve();
  let number = 0;

  async function send(blob, name) {
    const id = `${Date.now()}-${number++}`;
    const parts = Math.max(1, Math.ceil(blob.size / SLICE));
    status.textContent = `Sending ${name} ...`;
    const answer = new Promise((resolve) => (answered = resolve));
    for (let part = 0; part < parts; part++) {
      const slice = await blob.slice(part * SLICE, (part + 1) * SLICE).arrayBuffer();
      model.send({ kind: "file", id, name, part, parts }, undefined, [slice]);
    }
    await answer;
  }

  function take(files) {
    for (const file of files) {
      const large = model.get("largest");
      if (file.size > large) {
        fail(file.name, `The file has more than ${Math.round(large / 1e6)} MB. Save it smaller.`);
      } else {
        sending = sending.then(() => send(file, file.name)).catch((error) => fail(file.name, String(error)));
      }
    }
  }

  function fail(name, text) {
    const card = element("section", "fag-card fag-failed");
    card.append(element("h3", "", name), element("p", "fag-error", text));
    cards.prepend(card);
  }

  // --- where pictures come from

  const input = element("input", "fag-input");
  input.type = "file";
  input.multiple = true;
  input.accept = "image/*,.heic,.heif,.avif";
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  const choose = button("Choose photographs", "fag-main", () => input.click());
  const camera = button("Use the camera", "fag-camera", openCamera);
  const first = element("div", "fag-row");
  first.append(choose, input, camera, element("span", "fag-hint", "or drop files here, as many as you like"));
  const second = element("div", "fag-row fag-samples");
  second.append(element("span", "fag-hint", "No photograph at hand? Try"));
  for (const sample of model.get("samples")) {
    second.append(button(sample, "fag-sample", () => {
      sending = sending.then(() => {
        const answer = new Promise((resolve) => (answered = resolve));
        model.send({ kind: "sample", name: sample });
        return answer;
      });
    }));
  }
  const trouble = element("p", "fag-trouble");
  trouble.setAttribute("role", "alert");
  drop.append(first, trouble, second, element("p", "fag-privacy", model.get("privacy")));

  for (const event of ["dragenter", "dragover"]) {
    drop.addEventListener(event, (e) => {
      e.preventDefault();
      e.stopPropagation();
      drop.classList.add("fag-over");
    });
  }
  for (const event of ["dragleave", "drop"]) {
    drop.addEventListener(event, (e) => {
      e.preventDefault();
      e.stopPropagation();
      drop.classList.remove("fag-over");
    });
  }
  drop.addEventListener("drop", (e) => take([...e.dataTransfer.files]));

  let closeCamera = () => {};
  async function openCamera() {
    closeCamera();
    trouble.textContent = "";
    if (!navigator.mediaDevices) {
      trouble.textContent = "This page may not use a camera: browsers allow that only at https:// or localhost. Choose a file.";
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
    } catch (error) {
      trouble.textContent = CAMERA[error.name] || `The camera can't be used (${error.message}). Choose a file.`;
      return;
    }
    const box = element("div", "fag-live");
    const video = element("video");
    Object.assign(video, { autoplay: true, muted: true, playsInline: true, srcObject: stream });
    closeCamera = () => {
      stream.getTracks().forEach((track) => track.stop());
      box.remove();
      closeCamera = () => {};
    };
    const shoot = button("Take the picture", "fag-main fag-shoot", () => {
      const canvas = element("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => {
        closeCamera();
        sending = sending.then(() => send(blob, "camera.jpg"));
      }, "image/jpeg", 0.95);
    });
    shoot.disabled = true; // until there is something to take
    video.addEventListener("loadeddata", () => (shoot.disabled = false));
    const row = element("div", "fag-row");
    row.append(shoot, button("Close the camera", "", () => closeCamera()));
    box.append(video, row);
    drop.append(box);
    await video.play();
  }

  // --- what comes back

  function cardOf(id) {
    return cards.querySelector(`[data-photo="${CSS.escape(id)}"]`);
  }

  function show(message, buffers) {
    const card = element("section", "fag-card");
    card.dataset.photo = message.id;
    const head = element("div", "fag-head");
    head.append(element("h3", "", message.name));
    card.append(head);
    for (const note of message.notes) card.append(element("p", "fag-note", note));
    if (message.error) {
      card.classList.add("fag-failed");
      card.append(element("p", "fag-error", message.error));
      return card;
    }
    head.append(button("Save picture", "fag-save-picture", () => model.send({ kind: "save_picture", id: message.id })));
    const view = element("div", "fag-view");
    view.append(picture(buffers[0], "image/jpeg", `${message.name}, ${message.people.length} faces`));
    const detail = element("div", "fag-detail");
    const ask = (face) => {
      card.querySelectorAll("[data-face]").forEach((one) => one.classList.toggle("fag-chosen", one.dataset.face === String(face)));
      detail.textContent = "One moment ...";
      model.send({ kind: "detail", id: message.id, face });
    };
    for (const person of message.people) {
      const hot = button("", "fag-hot", () => ask(person.face));
      hot.dataset.face = person.face;
      hot.title = `Face ${person.face}: click to see more`;
      hot.setAttribute("aria-label", hot.title);
      const [left, top, width, height] = person.box.map((share) => `${100 * share}%`);
      Object.assign(hot.style, { left, top, width, height });
      view.append(hot);
    }
    card.append(view);
    if (!message.people.length) {
      card.append(element("p", "fag-none", message.none));
      return card;
    }
    const table = element("table", "fag-table");
    const header = element("tr");
    for (const name of message.columns) header.append(element("th", "", name));
    table.append(element("thead"), element("tbody"));
    table.tHead.append(header);
    for (const person of message.people) {
      const row = element("tr");
      row.dataset.face = person.face;
      for (const cell of person.cells) row.append(element("td", "", cell));
      row.addEventListener("click", () => ask(person.face));
      table.tBodies[0].append(row);
    }
    const scroll = element("div", "fag-scroll");
    scroll.append(table);
    detail.textContent = "Click on a face, or on its row, to see what the network saw and how it came to its answer.";
    card.append(detail, scroll);
    return card;
  }

  function receive(message, buffers) {
    if (message.kind === "status") {
      status.textContent = message.text;
    } else if (message.kind === "photo") {
      const card = show(message, buffers);
      const old = cardOf(message.id);
      if (old) old.replaceWith(card);
      else cards.prepend(card);
      if (!message.again) answered();
    } else if (message.kind === "detail") {
      const card = cardOf(message.id);
      if (!card) return;
      const detail = card.querySelector(".fag-detail");
      const words = element("div", "fag-words");
      words.append(element("h4", "", message.title));
      for (const line of message.lines) words.append(element("p", "", line));
      const crop = element("figure", "fag-crop");
      crop.append(picture(buffers[0], "image/png", "the face as the network sees it"), element("figcaption", "", message.caption));
      const belief = element("figure", "fag-belief");
      belief.append(picture(buffers[1], "image/png", "how the network spreads its belief over the ages"));
      detail.replaceChildren(crop, belief, words);
    } else if (message.kind === "save") {
      const link = element("a");
      link.href = URL.createObjectURL(new Blob([buffers[0]], { type: message.type }));
      link.download = message.name;
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    } else if (message.kind === "forget") {
      cards.replaceChildren();
    } else if (message.kind === "dropped") {
      const card = cardOf(message.id);
      if (card) card.remove();
    }
  }

  model.on("msg:custom", receive);
  model.send({ kind: "ready" });
  return () => {
    closeCamera();
    model.off("msg:custom", receive);
  };
}

export default { render };
