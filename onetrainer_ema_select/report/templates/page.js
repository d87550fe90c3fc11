"use strict";
(() => {
  const root = document.documentElement;
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const data = JSON.parse($("#data").textContent);
  const language = () => root.dataset.lang;
  const word = (key) => data.words[language()][key];
  const fill = (key, values) => word(key).replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const remember = (key, value) => { try { localStorage.setItem(`ema-select-${key}`, value); } catch { /* not on every disk */ } };
  const remembered = (key) => { try { return localStorage.getItem(`ema-select-${key}`); } catch { return null; } };
  root.classList.add("on");

  // -- language and theme
  const speak = (chosen) => {
    root.lang = root.dataset.lang = chosen;
    for (const element of all("[data-en]")) element.textContent = element.dataset[chosen];
    for (const element of all("[data-label-en]")) element.setAttribute("aria-label", element.dataset[chosen === "zh" ? "labelZh" : "labelEn"]);
    cards.forEach((card) => card.shown && card.show());
    plots.forEach((plot) => plot.speak());
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const paint = () => root.classList.toggle("is-dark", isDark());
  const theme = remembered("theme");
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  paint();
  dark.addEventListener("change", paint);
  $("#theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", root.dataset.theme);
    paint();
  });
  $("#language").addEventListener("click", () => {
    speak(language() === "en" ? "zh" : "en");
    remember("language", language());
  });

  // -- the line of the run
  const readout = $("#line-readout");
  if (readout) {
    const hint = [...readout.childNodes];
    const lanes = new Map();
    for (const mark of all(".line .mark, .line .bar")) {
      const tell = () => readout.replaceChildren(mark.getAttribute("aria-label"));
      mark.addEventListener("pointerenter", tell);
      mark.addEventListener("focus", tell);
      mark.addEventListener("pointerleave", () => { if (document.activeElement !== mark) readout.replaceChildren(...hint); });
      const rect = $("rect", mark);
      const lane = mark.classList.contains("bar") ? "bars" : rect.getAttribute("y");
      lanes.set(lane, [...(lanes.get(lane) || []), mark]);
    }
    for (const marks of lanes.values()) {
      // One stop of the Tab key for each lane; the arrow keys go along it.
      marks.forEach((mark, index) => {
        mark.setAttribute("tabindex", index ? "-1" : "0");
        mark.addEventListener("keydown", (event) => {
          const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: marks.length - 1 }[event.key];
          if (to === undefined || !marks[to]) return;
          event.preventDefault();
          marks.forEach((other, place) => other.setAttribute("tabindex", place === to ? "0" : "-1"));
          marks[to].focus();
        });
      });
    }
  }
  const openTarget = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.id === "saves") target.nextElementSibling.open = true;
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView({ block: "start" }); }
  };
  addEventListener("hashchange", openTarget);

  // -- pictures
  const section = $("#pictures");
  const together = $("#together");
  const source = (sample) => `data:image/jpeg;base64,${document.getElementById(`copy-${sample.copy}`).textContent}`;
  const SETS = ["ema", "non-ema", "unknown"];
  class Card {
    constructor(element, prompt) {
      this.element = element;
      this.prompt = prompt;
      this.shown = false;
      this.slider = $(".steps", element);
      this.mixer = $(".mixer", element);
      this.stage = $(".stage", element);
      if (!this.slider) return;
      this.slider.addEventListener("input", () => {
        this.show();
        if (together && together.checked) for (const card of cards) if (card !== this) card.follow(this.moment.step);
      });
      if (this.mixer) {
        this.mixer.addEventListener("input", () => this.mix());
        const drag = (event) => {
          if (section.dataset.mode !== "swipe" || !(event.buttons & 1)) return;
          const box = this.stage.getBoundingClientRect();
          const picture = $(".picture", this.stage).getBoundingClientRect();
          this.mixer.value = Math.round(100 * (event.clientX - (picture.left || box.left)) / (picture.width || box.width));
          this.mix();
        };
        this.stage.addEventListener("pointerdown", drag);
        this.stage.addEventListener("pointermove", drag);
        this.stage.addEventListener("dragstart", (event) => event.preventDefault());
      }
      for (const set of SETS) {
        const link = $(`figure.${set} .picture`, element);
        if (link) link.addEventListener("click", (event) => {
          event.preventDefault();
          if (section.dataset.mode !== "swipe" || !this.mixer || event.detail === 0) this.enlarge(set);
        });
      }
    }
    get moment() { return this.prompt.moments[this.slider.value]; }
    mix() { this.stage.style.setProperty("--mix", `${this.mixer.value}%`); this.mixer.setAttribute("aria-valuetext", `${this.mixer.value} %`); }
    follow(step) {
      if (!this.slider) return;
      const places = this.prompt.moments.map((moment) => moment.step);
      let place = places.findIndex((own) => own >= step);
      if (place < 0) place = places.length - 1;
      else if (place && places[place] - step > step - places[place - 1]) place -= 1;
      this.slider.value = place;
      if (this.shown) this.show();
    }
    show() {
      if (!this.slider) return;
      this.shown = true;
      const moment = this.moment;
      const values = { step: moment.step.toLocaleString(language()), epoch: moment.epoch };
      let text = fill("where", values);
      if (moment.differ !== null) text += ` · ${fill("differ", { share: (100 * moment.differ).toFixed(1) })}`;
      $(".where", this.element).textContent = text;
      this.slider.setAttribute("aria-valuetext", text);
      for (const set of SETS) {
        const link = $(`figure.${set} .picture`, this.element);
        if (!link) continue;
        const sample = moment.sets[set];
        const image = $("img", link);
        link.classList.toggle("empty", !sample || sample.copy === null);
        if (sample) { link.href = sample.url; link.style.setProperty("aspect-ratio", `${sample.width || 1} / ${sample.height || 1}`); } else { link.removeAttribute("href"); }
        if (sample && sample.copy !== null) {
          image.src = source(sample);
          image.alt = fill("alt", { ...values, set: word(set), prompt: this.prompt.title });
        } else {
          image.removeAttribute("src");
          image.alt = "";
        }
      }
    }
    enlarge(set) {
      if (this.moment.sets[set]) viewer.open(this, set);
    }
  }
  const cards = all(".prompt").map((element) => new Card(element, data.prompts[element.dataset.prompt]));
  section.dataset.mode = "side";
  for (const radio of all('input[name="mode"]')) radio.addEventListener("change", () => { section.dataset.mode = radio.value; });
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      cards[entry.target.dataset.prompt].show();
    }
  }, { rootMargin: "800px" });
  for (const card of cards) watcher.observe(card.element);
  addEventListener("beforeprint", () => cards.forEach((card) => card.shown || card.show()));

  // -- full size
  const viewer = {
    dialog: $("#full"),
    image: $("#full-image"),
    open(card, set) {
      this.card = card;
      this.set = set;
      this.show();
      if (!this.dialog.open) this.dialog.showModal();
    },
    show() {
      const moment = this.card.moment;
      if (!moment.sets[this.set]) this.set = SETS.find((set) => moment.sets[set]);
      const sample = moment.sets[this.set];
      const values = { step: moment.step.toLocaleString(language()), epoch: moment.epoch, set: word(this.set), prompt: this.card.prompt.title };
      $("#full-title").textContent = fill("alt", values);
      this.image.alt = fill("alt", values);
      this.image.onerror = () => {
        // The page has been taken elsewhere: its own small copy is what there is.
        this.image.onerror = null;
        if (sample.copy !== null) this.image.src = source(sample);
        $("#full-title").textContent = `${fill("alt", values)} ${word("gone")}`;
      };
      this.image.src = sample.url;
      $("#full-link").href = sample.url;
      $("#full-set").hidden = SETS.filter((set) => moment.sets[set]).length < 2;
    },
    move(by) {
      const slider = this.card.slider;
      slider.value = Number(slider.value) + by;
      slider.dispatchEvent(new Event("input"));
      this.show();
    },
    other() {
      const there = SETS.filter((set) => this.card.moment.sets[set]);
      this.set = there[(there.indexOf(this.set) + 1) % there.length];
      this.show();
    },
  };
  $("#full-close").addEventListener("click", () => viewer.dialog.close());
  $("#full-back").addEventListener("click", () => viewer.move(-1));
  $("#full-on").addEventListener("click", () => viewer.move(1));
  $("#full-set").addEventListener("click", () => viewer.other());
  viewer.dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") viewer.move(-1);
    if (event.key === "ArrowRight") viewer.move(1);
    if (event.key === "ArrowUp" || event.key === "ArrowDown") { event.preventDefault(); viewer.other(); }
  });

  // -- curves
  class Plot {
    constructor(element) {
      this.element = element;
      this.chart = data.charts[element.dataset.chart];
      this.plot = $(".plot", element);
      this.cursor = $(".cursor", element);
      this.place = null;
      this.steps = [...new Set(this.chart.series.flatMap((one) => one.points.map((point) => point[2])))].sort((a, b) => a - b);
      this.xs = new Map(this.chart.series.flatMap((one) => one.points.map((point) => [point[2], point[0]])));
      this.plot.setAttribute("aria-valuemax", this.steps.length - 1);
      this.plot.addEventListener("pointermove", (event) => {
        const box = this.plot.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * this.chart.width;
        let best = 0;
        this.steps.forEach((step, place) => { if (Math.abs(this.xs.get(step) - x) < Math.abs(this.xs.get(this.steps[best]) - x)) best = place; });
        this.tell(best);
      });
      this.plot.addEventListener("focus", () => this.tell(this.place ?? this.steps.length - 1));
      this.plot.addEventListener("keydown", (event) => {
        const last = this.steps.length - 1, now = this.place ?? last;
        const to = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: last, PageUp: now + 10, PageDown: now - 10 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        this.tell(Math.min(last, Math.max(0, to)));
      });
    }
    tell(place) {
      this.place = place;
      const step = this.steps[place];
      const parts = [fill("step", { step: step.toLocaleString(language()) })];
      for (const one of this.chart.series) {
        let near = null;
        for (const point of one.points) if (point[2] <= step) near = point;
        if (near) parts.push(`${one.name[language()]} ${Number(near[3].toPrecision(4))}`);
      }
      const text = parts.join(" · ");
      $(".readout", this.element).textContent = text;
      this.plot.setAttribute("aria-valuenow", place);
      this.plot.setAttribute("aria-valuetext", text);
      this.cursor.hidden = false;
      this.cursor.style.setProperty("left", `${100 * this.xs.get(step) / this.chart.width}%`);
    }
    speak() { if (this.place === null) this.plot.setAttribute("aria-valuetext", word("chart_hint")); else this.tell(this.place); }
  }
  const plots = all(".chart").map((element) => new Plot(element));

  // -- copying
  const copyOld = (text) => {
    // From a file some browsers give no clipboard: a text that is selected can be copied anyway.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
    return done;
  };
  const say = (text) => { $("#said").textContent = ""; setTimeout(() => { $("#said").textContent = text; }, 50); };
  for (const button of all(".copy")) button.addEventListener("click", async () => {
    const code = $("code", button.parentElement);
    let done = false;
    try { await navigator.clipboard.writeText(code.textContent); done = true; } catch { done = copyOld(code.textContent); }
    button.focus();
    if (!done) {
      getSelection().selectAllChildren(code);
      say(word("select"));
      return;
    }
    button.classList.add("copied");
    say(word("copied"));
    setTimeout(() => button.classList.remove("copied"), 2000);
  });

  const chosen = remembered("language");
  if (root.dataset.choose === "yes") {
    const wanted = chosen === "en" || chosen === "zh" ? chosen : (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
    if (wanted !== language()) speak(wanted);
  }
  openTarget();
  root.dataset.ready = "yes";
})();
