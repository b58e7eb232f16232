/* A grid of which only the rows in view are in the document, so that ten thousand cards cost as much as twenty. */
function makeGrid(view, inner, makeCard) {
  const LEAST_WIDTH = 232;
  const GAP = 14;
  const CAPTION = 62;
  const shown = new Map(); // place in the list -> card
  let list = [];
  let current = 0;
  let columns = 1;
  let width = LEAST_WIDTH;

  const rowHeight = () => Math.round(width * 0.75) + CAPTION + GAP;

  function layout() {
    const room = inner.clientWidth;
    columns = Math.max(1, Math.floor((room + GAP) / (LEAST_WIDTH + GAP)));
    width = Math.floor((room - GAP * (columns - 1)) / columns);
    inner.style.height = `${Math.ceil(list.length / columns) * rowHeight()}px`;
  }

  function put(card, place) {
    card.style.width = `${width}px`;
    card.style.height = `${rowHeight() - GAP}px`;
    const left = (place % columns) * (width + GAP);
    card.style.transform = `translate(${left}px, ${Math.floor(place / columns) * rowHeight()}px)`;
    card.setAttribute("aria-posinset", place + 1);
    card.setAttribute("aria-setsize", list.length);
  }

  function draw() {
    const first = Math.max(0, Math.floor((view.scrollTop - inner.offsetTop) / rowHeight()) - 1) * columns;
    const last = first + (Math.ceil(view.clientHeight / rowHeight()) + 3) * columns;
    for (const [place, card] of shown) {
      if (place < first || place >= Math.min(last, list.length) || card.index !== list[place]) {
        card.remove();
        shown.delete(place);
      }
    }
    let before = null;
    for (let place = first; place < Math.min(last, list.length); place++) {
      let card = shown.get(place);
      if (!card) {
        card = makeCard(list[place]);
        card.index = list[place];
        shown.set(place, card);
        if (before) before.after(card);
        else inner.prepend(card);
      }
      before = card;
      put(card, place);
      mark(card, place === current);
    }
  }

  function mark(card, is) {
    card.classList.toggle("current", is);
    card.tabIndex = is ? 0 : -1;
    if (is) card.setAttribute("aria-current", "true");
    else card.removeAttribute("aria-current");
  }

  function reveal() {
    const top = inner.offsetTop + Math.floor(current / columns) * rowHeight();
    const bottom = top + rowHeight();
    if (top < view.scrollTop) view.scrollTop = top - GAP;
    else if (bottom > view.scrollTop + view.clientHeight) view.scrollTop = bottom - view.clientHeight;
  }

  function go(place, focus = true) {
    if (!list.length) return;
    current = Math.min(Math.max(place, 0), list.length - 1);
    reveal();
    draw();
    if (focus) shown.get(current)?.focus({ preventScroll: true });
  }

  /** Show these masks; the current one stays where it is among them, else the one in its place comes. */
  function setList(indices, keep) {
    const was = list[current];
    list = indices;
    const found = keep === undefined ? list.indexOf(was) : list.indexOf(keep);
    current = found >= 0 ? found : Math.min(current, Math.max(0, list.length - 1));
    layout();
    draw();
  }

  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  view.addEventListener("scroll", later, { passive: true });
  new ResizeObserver(() => {
    layout();
    later();
  }).observe(view);

  return {
    setList,
    go,
    draw,
    get current() { return current; },
    get index() { return list[current]; },
    get columns() { return columns; },
    get length() { return list.length; },
    get rowsInView() { return Math.max(1, Math.floor(view.clientHeight / rowHeight())); },
    placeOf: (index) => list.indexOf(index),
    cardOf: (index) => [...shown.values()].find((card) => card.index === index),
  };
}
