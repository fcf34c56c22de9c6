// SPDX-FileCopyrightText: 2026 The stream_vlm developers
// SPDX-License-Identifier: Apache-2.0

// What a camera shows: the newest picture, asked for when the last one stands on the page.
export default {
  template: `
    <figure class="sv-picture" :data-frames="frames">
      <img ref="image" :alt="label" @load="shown" @error="shown">
      <figcaption v-show="time">{{ time }}</figcaption>
      <p v-if="!frames" class="sv-picture-empty">No picture yet</p>
    </figure>`,
  props: { url: String, label: String, pause: Number }, // ms between two pictures, at least
  data: () => ({ time: "", frames: 0 }),
  mounted() {
    this.open();
    document.addEventListener("visibilitychange", this.visible);
  },
  unmounted() {
    document.removeEventListener("visibilitychange", this.visible);
    this.close();
  },
  watch: { url() { this.close(); this.open(); } },
  methods: {
    open() {
      const place = new URL(this.url, document.baseURI);
      place.protocol = place.protocol === "https:" ? "wss:" : "ws:";
      const socket = (this.socket = new WebSocket(place));
      socket.binaryType = "arraybuffer";
      socket.onmessage = (message) => this.show(new Uint8Array(message.data));
      socket.onclose = () => {
        if (this.socket === socket) this.again = setTimeout(this.open, 1000);
      };
    },
    close() {
      clearTimeout(this.again);
      const socket = this.socket;
      this.socket = null;
      if (socket) socket.close();
    },
    // Nobody looks at a page that is hidden: nothing is asked for then.
    visible() {
      if (document.hidden) this.close();
      else if (!this.socket) this.open();
    },
    show(data) {
      const start = 1 + data[0];
      this.time = new TextDecoder().decode(data.subarray(1, start));
      const old = this.held;
      this.held = URL.createObjectURL(new Blob([data.subarray(start)], { type: "image/jpeg" }));
      this.$refs.image.src = this.held;
      if (old) URL.revokeObjectURL(old);
    },
    shown() {
      this.frames += 1;
      const socket = this.socket;
      const next = () => socket && socket.readyState === WebSocket.OPEN && socket.send("");
      if (this.pause) setTimeout(next, this.pause);
      else next();
    },
  },
};
