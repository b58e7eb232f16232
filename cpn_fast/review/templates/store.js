/* Decisions: index of a mask -> what was said. On a static page the browser keeps them, a key for each mask, so that
   one more costs the same however many there are; on a served one they go to the server. */
const SAID = ["accepted", "needs-correction", "rejected"];

function makeStore(data, show) {
  const decisions = new Map();
  const pending = new Map();
  let sending = false;
  let delay = 500;

  const place = (index) => `cpn-review ${data.store} ${data.items[index][0]}`;
  const version = (index) => data.items[index][5];

  function load() {
    for (const [index, decision] of Object.entries(data.decisions)) decisions.set(Number(index), decision);
    if (data.served) return;
    try {
      const base = `cpn-review-base ${data.store}`;
      const fresh = localStorage.getItem(base) !== data.base;
      data.items.forEach((_, index) => {
        const found = localStorage.getItem(place(index));
        if (found === null) return;
        const [decision, seen] = found.split(" ");
        // What review.csv says counts more than what was kept before it was written, as does a mask made anew.
        if (seen !== version(index) || (fresh && decisions.has(index))) localStorage.removeItem(place(index));
        else if (SAID.includes(decision)) decisions.set(index, decision);
        else decisions.delete(index);
      });
      localStorage.setItem(base, data.base);
      show("kept in this browser");
    } catch {
      show("not kept: download the CSV before you close this page", true);
    }
  }

  function keep(index) {
    try {
      localStorage.setItem(place(index), `${decisions.get(index) ?? "-"} ${version(index)}`);
    } catch {
      show("not kept: download the CSV before you close this page", true);
    }
  }

  async function send() {
    if (sending || pending.size === 0) return;
    sending = true;
    show("saving");
    const batch = new Map(pending);
    const said = Object.fromEntries([...batch].map(([index, decision]) => [data.items[index][0], decision]));
    try {
      const answer = await fetch("decisions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ decisions: said }),
      });
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || `status ${answer.status}`);
      for (const [index, decision] of batch) if (pending.get(index) === decision) pending.delete(index);
      delay = 500;
      show(pending.size ? "saving" : "saved in review.csv");
    } catch (error) {
      show(`not saved (${error.message}); trying again: is the command still running?`, true);
      setTimeout(send, delay);
      delay = Math.min(2 * delay, 10000);
      return;
    } finally {
      sending = false;
    }
    send();
  }

  function set(index, decision) {
    if (decision) decisions.set(index, decision);
    else decisions.delete(index);
    if (data.served) {
      pending.set(index, decision ?? null);
      send();
    } else keep(index);
  }

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function csv() {
    const lines = ["name,decision,version"];
    data.items.forEach(([name], index) => {
      if (decisions.has(index)) lines.push([name, decisions.get(index), version(index)].map(quoted).join(","));
    });
    return lines.join("\n") + "\n";
  }

  addEventListener("beforeunload", (event) => {
    if (pending.size) event.preventDefault();
  });
  load();
  return { get: (index) => decisions.get(index), set, csv };
}
