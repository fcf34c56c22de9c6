// SPDX-FileCopyrightText: 2026 The stream_vlm developers
// SPDX-License-Identifier: Apache-2.0

// The time line: a stretch of it is picked by a drag, a click or the keys; a look at a time shows
// the picture that is kept of it.
const HEIGHT = 34, TOP = 10, LEAST = 2; // px

export default {
  template: `
    <div class="sv-line" ref="box" tabindex="0" role="slider" aria-label="Time line"
         :aria-valuemin="0" :aria-valuemax="Math.round(length / 1000)"
         :aria-valuenow="Math.round((at ?? length) / 1000)" :aria-valuetext="told"
         aria-describedby="sv-line-help"
         @pointerdown="down" @pointermove="move" @pointerup="up" @pointercancel="drag = null"
         @pointerleave="leave" @keydown="key" @blur="leave">
      <svg :width="width" height="62" aria-hidden="true">
        <rect v-for="(b, i) in bands" :key="i" :class="'sv-' + b.kind" :x="b.x" :width="b.width"
              :y="b.y" :height="b.height" :rx="b.rx" />
        <rect v-if="picked" class="sv-picked" :x="picked.x" :width="picked.width" y="5" height="44" rx="4" />
        <g v-for="(e, i) in evidence" :key="'e' + i" class="sv-evidence">
          <rect :x="e.x" :width="e.width" y="7" height="40" rx="3" />
          <path :d="'M' + (e.x + e.width / 2) + ' 7 l-5 -7 h10 z'" />
        </g>
        <g v-for="(m, i) in marks" :key="'m' + i" class="sv-mark">
          <line :x1="m.x" :x2="m.x" y1="44" y2="48" />
          <text :x="m.x" y="59" :text-anchor="m.anchor">{{ m.text }}</text>
        </g>
        <line v-if="at !== null" class="sv-cursor" :x1="x(at)" :x2="x(at)" y1="3" y2="48" />
      </svg>
      <div v-if="at !== null && line" class="sv-tip" :style="tip" aria-hidden="true">
        <img v-if="source && !missing" :src="source" alt="" @error="missing = true">
        <span v-else class="sv-tip-none">{{ missing ? "no picture is kept" : "" }}</span>
        <b>{{ clock(at) }}</b><span :class="'sv-dot sv-' + kind"></span>{{ kinds[kind] }}
      </div>
      <p v-if="!line" class="sv-line-empty">Nothing has been seen yet</p>
    </div>`,
  props: {
    line: Object, kinds: Object, thumbnails: String, marked: Array, chosen: Array,
  },
  data: () => ({ width: 600, at: null, drag: null, source: "", missing: false }),
  computed: {
    length() { return Math.max(1, this.line?.length ?? 1); },
    bands() {
      return (this.line?.bands ?? []).map(([kind, from, to]) => {
        const thin = kind !== "forgotten" && kind !== "history" && kind !== "window";
        const width = Math.max(LEAST, this.x(to) - this.x(from));
        const x = Math.min(this.x(from), this.width - width);
        return { kind, x, width, y: TOP, height: HEIGHT, rx: thin ? 1 : 3 };
      });
    },
    evidence() { return (this.marked ?? []).map((span) => this.box(span, 6)); },
    picked() {
      const span = this.drag ? this.span() : this.chosen?.[0];
      return span && this.line ? this.box(span, 4) : null;
    },
    marks() {
      let free = -Infinity;
      const found = [];
      for (const [ms, text] of this.line?.marks ?? []) {
        const x = this.x(ms), half = text.length * 3.4;
        const anchor = x < half ? "start" : x > this.width - half ? "end" : "middle";
        const left = anchor === "start" ? x : anchor === "end" ? x - 2 * half : x - half;
        if (left < free) continue;
        free = left + 2 * half + 10;
        found.push({ x, text, anchor });
      }
      return found;
    },
    kind() { return this.at === null ? "" : this.kindAt(this.at); },
    told() {
      if (!this.line) return "nothing has been seen yet";
      const at = this.at ?? this.length;
      return `${this.clock(at)}, ${this.kinds[this.kindAt(at)] ?? ""}`;
    },
    tip() {
      const half = 84;
      return { left: Math.max(half, Math.min(this.width - half, this.x(this.at))) + "px" };
    },
  },
  mounted() {
    this.sight = new ResizeObserver(() => (this.width = this.$refs.box.clientWidth));
    this.sight.observe(this.$refs.box);
  },
  unmounted() { this.sight.disconnect(); clearTimeout(this.soon); },
  methods: {
    x(ms) { return (ms / this.length) * this.width; },
    box([from, to], least) {
      const width = Math.max(least, this.x(to) - this.x(from));
      const middle = (this.x(from) + this.x(to)) / 2;
      return { x: Math.max(0, Math.min(this.width - width, middle - width / 2)), width };
    },
    kindAt(ms) {
      const near = (this.length / this.width) * LEAST;
      for (const [kind, from, to] of [...(this.line?.bands ?? [])].reverse())
        if (from <= ms && ms <= Math.max(to, from + near)) return kind;
      return "forgotten";
    },
    clock(ms) {
      const day = this.line.day;
      const tenths = Math.floor(day == null ? Number(BigInt(this.line.origin) / 100000000n) + ms / 100 : day * 10 + ms / 100);
      const whole = Math.floor(tenths / 10), two = (n) => String(n).padStart(2, "0");
      const s = `${two(whole % 60)}.${tenths % 10}`, m = Math.floor(whole / 60) % 60, h = Math.floor(whole / 3600);
      if (day != null) return `${two(h % 24)}:${two(m)}:${s}`;
      return h ? `${h}:${two(m)}:${s}` : `${m}:${s}`;
    },
    ms(event) {
      const left = this.$refs.box.getBoundingClientRect().left;
      return Math.round(Math.max(0, Math.min(1, (event.clientX - left) / this.width)) * this.length);
    },
    // A click picks some seconds around it: enough for the pictures next to it.
    span() {
      const { from, to } = this.drag, moved = Math.abs(this.x(to) - this.x(from)) > 4;
      const around = Math.max(1000, this.length / 200);
      const span = moved ? [Math.min(from, to), Math.max(from, to)] : [to - around, to + around];
      return [Math.max(0, Math.round(span[0])), Math.min(this.length, Math.round(span[1]))];
    },
    look(ms) {
      this.at = ms;
      clearTimeout(this.soon);
      this.soon = setTimeout(() => {
        if (this.at === null || !this.line) return;
        this.missing = false;
        const stamp = BigInt(this.line.origin) + BigInt(this.at) * 1000000n;
        this.source = new URL(`${this.thumbnails}/${stamp}?size=320`, document.baseURI).href;
      }, 90);
    },
    down(event) {
      if (!this.line || event.button) return;
      this.$refs.box.setPointerCapture(event.pointerId);
      const at = this.ms(event);
      this.drag = { from: at, to: at };
    },
    move(event) {
      if (!this.line) return;
      const at = this.ms(event);
      if (this.drag) this.drag = { ...this.drag, to: at };
      this.look(at);
    },
    up() {
      if (!this.drag) return;
      this.choose(this.span());
      this.drag = null;
    },
    choose(span) { this.$emit("choose", { origin: this.line.origin, from: span[0], to: span[1] }); },
    leave() {
      if (this.drag) return;
      clearTimeout(this.soon);
      this.at = null;
      this.source = "";
    },
    key(event) {
      if (!this.line) return;
      const at = this.at ?? this.length, step = this.length / (event.shiftKey ? 20 : 100);
      const to = { ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step,
        PageDown: at - 10 * step, PageUp: at + 10 * step, Home: 0, End: this.length }[event.key];
      if (to !== undefined) this.look(Math.round(Math.max(0, Math.min(this.length, to))));
      else if (event.key === "Enter" || event.key === " ") {
        this.drag = { from: at, to: at };
        this.choose(this.span());
        this.drag = null;
      } else if (event.key === "Escape") this.$emit("choose", null);
      else return;
      event.preventDefault();
    },
  },
};
