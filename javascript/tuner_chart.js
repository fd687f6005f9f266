// The loss curve on a canvas: loss as it is and smoothed, the learning rate on its own scale, and the validation losses.
"use strict";

(function (tuner) {
    const LEFT = 52, RIGHT = 56, TOP = 10, BOTTOM = 24; // px around the plot

    // Exponential moving average with bias correction, as TensorBoard smooths; weight 0 leaves the values as they are.
    function smooth(values, weight) {
        let last = 0, factor = 1;
        return values.map((value) => {
            if (!Number.isFinite(value)) return null;
            last = last * weight + (1 - weight) * value;
            factor *= weight;
            return last / (1 - factor);
        });
    }

    function range(values) {
        let low = Infinity, high = -Infinity;
        for (const value of values) {
            if (!Number.isFinite(value)) continue; // null would be 0
            if (value < low) low = value;
            if (value > high) high = value;
        }
        if (!(high >= low)) return [0, 1];
        const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
        return [low >= 0 ? Math.max(0, low - room) : low - room, high + room]; // there is no loss below 0
    }

    // The part of the values that is looked at: single outliers would press the curve flat.
    function calm(values) {
        const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
        if (!sorted.length) return [0, 1];
        return [sorted[Math.floor(sorted.length * 0.005)], sorted[Math.ceil(sorted.length * 0.995) - 1]];
    }

    class Chart {
        constructor(canvas, onHover) {
            this.canvas = canvas;
            this.points = [];
            this.validations = [];
            this.steps = 1;
            this.weight = 0.9;
            canvas.addEventListener("pointermove", (event) => onHover(this.at(event.offsetX)));
            canvas.addEventListener("pointerleave", () => onHover(null));
            canvas.addEventListener("blur", () => onHover(null));
            canvas.addEventListener("keydown", (event) => { // the curve's values without a pointer
                const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -50, PageDown: 50, Home: -Infinity, End: Infinity }[event.key];
                if (!by || !this.points.length) return;
                event.preventDefault();
                const at = this.index === undefined ? this.points.length - 1 : this.index;
                this.index = Math.min(Math.max(at + by, 0), this.points.length - 1);
                onHover(this.points[this.index]);
            });
            new ResizeObserver(() => this.draw()).observe(canvas);
        }

        // The point nearest to a place on the canvas.
        at(x) {
            if (!this.points.length) return null;
            const step = this.first + (x - LEFT) / this.width * (this.last - this.first);
            let low = 0, high = this.points.length - 1;
            while (low < high) {
                const middle = (low + high) >> 1;
                if (this.points[middle][0] < step) low = middle + 1;
                else high = middle;
            }
            return this.points[low];
        }

        draw() {
            const ratio = window.devicePixelRatio || 1, w = this.canvas.clientWidth, h = this.canvas.clientHeight;
            if (!w || !h) return;
            if (this.canvas.width !== Math.round(w * ratio)) this.canvas.width = Math.round(w * ratio);
            if (this.canvas.height !== Math.round(h * ratio)) this.canvas.height = Math.round(h * ratio);
            const pen = this.canvas.getContext("2d"), style = getComputedStyle(this.canvas);
            pen.setTransform(ratio, 0, 0, ratio, 0, 0);
            pen.clearRect(0, 0, w, h);
            this.width = w - LEFT - RIGHT;
            this.height = h - TOP - BOTTOM;
            this.first = this.points.length ? Math.min(this.points[0][0], 1) : 0;
            this.last = Math.max(this.steps, this.points.length ? this.points[this.points.length - 1][0] : 1, this.first + 1);
            this.colours = {
                ink: style.color, grid: style.getPropertyValue("--border-color-primary") || "#ccc", soft: style.getPropertyValue("--tuner-soft"),
                line: style.getPropertyValue("--tuner-line"), rate: style.getPropertyValue("--tuner-rate"), dots: style.getPropertyValue("--tuner-dots"),
            };
            this.curves(pen);
        }

        curves(pen) {
            const losses = this.points.map((p) => p[1]), rates = this.points.map((p) => p[2]);
            const scale = range([...calm(losses), ...this.validations.map((v) => v[1])]);
            const rateScale = [0, Math.max(...range(rates).slice(1), Number.MIN_VALUE)];
            this.frame(pen, scale, rateScale);
            pen.save();
            pen.beginPath();
            pen.rect(LEFT, TOP, this.width, this.height);
            pen.clip();
            this.line(pen, rates, rateScale, this.colours.rate, 1, [4, 4]);
            this.line(pen, losses, scale, this.colours.soft, 1);
            this.line(pen, smooth(losses, this.weight), scale, this.colours.line, 2);
            pen.restore();
            pen.fillStyle = this.colours.dots;
            for (const [step, loss] of this.validations.filter(([, loss]) => Number.isFinite(loss))) {
                pen.beginPath();
                pen.arc(this.x(step), this.y(loss, scale), 4, 0, 7);
                pen.fill();
            }
        }

        x(step) { return LEFT + (step - this.first) / (this.last - this.first) * this.width; }
        y(value, [low, high]) { return TOP + (1 - (value - low) / (high - low)) * this.height; }

        // Many points fall on one column of pixels: its lowest and highest are drawn, so nothing is hidden and nothing is slow.
        line(pen, values, scale, colour, width, dash = []) {
            pen.strokeStyle = colour;
            pen.lineWidth = width;
            pen.setLineDash(dash);
            pen.beginPath();
            let column = null, low = 0, high = 0, last = 0;
            const flush = () => {
                pen.lineTo(column, low);
                if (high !== low) pen.lineTo(column, high);
                if (last !== high) pen.lineTo(column, last);
            };
            for (let i = 0; i < values.length; i++) {
                if (!Number.isFinite(values[i])) continue;
                const x = Math.round(this.x(this.points[i][0]) * 2) / 2, y = this.y(values[i], scale);
                if (x !== column) {
                    if (column !== null) flush();
                    column = x;
                    low = high = y;
                }
                low = Math.min(low, y);
                high = Math.max(high, y);
                last = y;
            }
            if (column !== null) flush();
            pen.stroke();
            pen.setLineDash([]);
        }

        frame(pen, [low, high], [slow, fast]) {
            pen.font = "11px system-ui, sans-serif";
            pen.fillStyle = this.colours.ink;
            pen.strokeStyle = this.colours.grid;
            pen.lineWidth = 1;
            for (let i = 0; i <= 4; i++) {
                const y = Math.round(TOP + this.height * i / 4) + 0.5;
                pen.beginPath();
                pen.moveTo(LEFT, y);
                pen.lineTo(LEFT + this.width, y);
                pen.stroke();
                pen.textAlign = "right";
                const loss = high - (high - low) * i / 4;
                pen.fillText(loss && Math.abs(loss) < 1e-3 ? loss.toExponential(1) : tuner.number(loss, 3), LEFT - 6, y + 4); // 0.0000541 has no room
                pen.textAlign = "left";
                if (this.points.length) pen.fillText((fast - (fast - slow) * i / 4).toExponential(1), LEFT + this.width + 6, y + 4);
            }
            pen.textAlign = "center";
            for (let i = 0; i <= 4; i++) {
                const step = Math.round(this.first + (this.last - this.first) * i / 4);
                pen.fillText(step.toString(), this.x(step), TOP + this.height + 16);
            }
        }
    }

    tuner.Chart = Chart;
    tuner.smooth = smooth;
})(window.tuner);
