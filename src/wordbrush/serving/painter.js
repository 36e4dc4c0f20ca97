// Of the mask's canvas: draws what is being painted; a stroke (or a click, a stroke of one point) goes to the
// server as points, which makes the mask of them. No picture is sent.
let points = null;
const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
element.addEventListener("pointerdown", event => {
    const canvas = event.target.closest("canvas");
    if (!canvas) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    canvas.width = canvas.clientWidth;
    canvas.height = canvas.clientHeight;
    points = [place(canvas, event)];
});
element.addEventListener("pointermove", event => {
    if (!points) return;
    const canvas = element.querySelector("canvas"), brush = canvas.getContext("2d");
    const [from, to] = [points[points.length - 1], place(canvas, event)];
    points.push(to);
    if (!Number(canvas.dataset.width)) return;
    brush.lineCap = "round";
    brush.lineWidth = canvas.dataset.width * Math.min(canvas.width, canvas.height);
    brush.strokeStyle = "rgb(139 92 246)";
    brush.beginPath();
    brush.moveTo(from[0] * canvas.width, from[1] * canvas.height);
    brush.lineTo(to[0] * canvas.width, to[1] * canvas.height);
    brush.stroke();
});
element.addEventListener("pointerup", () => {
    if (points) trigger("select", {points});
    points = null;
});
