"""The style sheet of comparison pages."""

STYLE = """
:root { color-scheme: light; --ink: #1c1f23; --soft: #5c636b; --line: #e3e6ea; --back: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 12px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-top: 20px; }
.note { color: var(--soft); max-width: 85ch; margin: 0 0 8px; }
.warning { border-left: 4px solid #d98a00; background: #fff7e6; margin: 8px 0 0;
  padding: 6px 12px; max-width: 110ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
table.narrow { width: auto; }
th, td { padding: 7px 10px; text-align: right; vertical-align: top; white-space: nowrap;
  border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: 13px; }
th[scope=row] { text-align: left; font-weight: 600; max-width: 300px; overflow-wrap: break-word;
  white-space: normal; min-width: 165px; padding-left: 43px; }
th[scope=row] .swatch { margin-left: -33px; }
th[scope=row] small { display: block; color: var(--soft); font-weight: 400; }
td small { color: var(--soft); }
tr.reference td, tr.reference th { color: var(--soft); font-weight: 400; }
.difference { font-size: 12px; color: var(--soft); }
.difference.better { color: #00704f; font-weight: 600; }
.difference.worse { color: #b84300; font-weight: 600; }
.swatch { width: 26px; height: 10px; margin-right: 7px; vertical-align: middle; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 10px; font-size: 13.5px; }
.grid2, .grid3, .pictures { display: grid; gap: 18px; }
.grid2 { grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
.grid3 { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; font-size: 13.5px; margin-bottom: 4px; }
figure svg:not(.swatch), figure img { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #4a5058; }
svg .label { fill: var(--ink); }
svg .grid { stroke: #e8eaed; stroke-width: 1; }
svg .axis { stroke: #9aa0a6; stroke-width: 1; }
code { font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; }
"""
