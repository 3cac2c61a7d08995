"""The report's style sheet: light or dark as the reader's device, on a phone and on paper."""

CSS = """
:root{color-scheme:light dark;
--page:#f6f7f9;--card:#fff;--ink:#1c2027;--faint:#626b7a;--line:#e2e5ea;
--grid:#e8ebef;--accent:#2563c9;--soft:#eaf1fc;--warn:#8a4b00;--warn-soft:#fff3dc;--bad:#b3261e;
--bad-soft:#fdecea;--track:#eef0f3;--edge:rgba(0,0,0,.22);
--series-0:#2563c9;--series-1:#d9730d;--series-2:#1b8a5a;--series-3:#8b4fc6;--series-4:#c8334a;
--series-5:#0b8fa3;--series-6:#8a6d1d;--series-7:#6b7280}
@media(prefers-color-scheme:dark){:root{--page:#101216;--card:#181b21;--ink:#e6e9ee;--faint:#98a1b0;
--line:#2a2f38;--grid:#272c35;--accent:#7fb0ff;--soft:#1b2636;--warn:#ffcb7d;--warn-soft:#33260f;
--bad:#ff9d94;--bad-soft:#3a1a18;--track:#242931;--edge:rgba(255,255,255,.35);
--series-0:#6ea8ff;--series-1:#ffa24d;--series-2:#4fcf93;--series-3:#c08df5;--series-4:#ff7f92;
--series-5:#46c9dc;--series-6:#d9bb58;--series-7:#a3abb8}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 12px}
h3{font-size:14px;margin:0 0 8px}
p{margin:0 0 10px}
a{color:var(--accent)}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:13px}
pre{margin:0 0 8px;padding:12px 14px;background:var(--track);border-radius:8px;white-space:pre-wrap;
overflow-wrap:anywhere}
.faint{color:var(--faint)}
.small{font-size:13px}.card+.small,.grid2+.small{margin-top:8px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px}
.badges{display:flex;flex-wrap:wrap;gap:6px;margin:0 0 18px}
.badge{padding:2px 10px;border-radius:99px;font-size:13px;
background:var(--soft);color:var(--accent)}
.badge.drawn,.badge.warn{background:var(--warn-soft);color:var(--warn)}
.badge.bad{background:var(--bad-soft);color:var(--bad)}
.mark{font-size:11px;font-weight:400;padding:1px 7px;border-radius:99px;background:var(--warn-soft);
color:var(--warn);white-space:nowrap;margin-left:6px;vertical-align:1px}
.head{display:grid;grid-template-columns:minmax(230px,auto) 1fr;gap:14px 40px;align-items:center}
.big{font-size:58px;line-height:1.05;font-weight:680;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.big small{font-size:26px;font-weight:500;margin-left:3px}
.others{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,190px),1fr));gap:12px}
.others div{border-left:3px solid var(--line);padding-left:12px}
.others b{font-size:21px;font-variant-numeric:tabular-nums;display:block}
.protocol{grid-column:1/-1;border-top:1px solid var(--line);padding-top:12px;margin:0}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:14px}
figure{margin:0}
svg{display:block;width:100%;height:auto}
svg text{font-size:11.5px;fill:var(--faint);font-variant-numeric:tabular-nums}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}
svg .grid{stroke:var(--grid);stroke-width:1;fill:none}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .pale{opacity:.28;stroke-width:1.2}
svg .band{opacity:.18}
svg .cell{stroke:var(--grid);stroke-width:.5}
.spark{width:80px;height:22px;display:inline-block;vertical-align:middle}
.spark polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;margin-top:8px;font-size:13px;color:var(--faint)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;
vertical-align:-1px;box-shadow:0 0 0 1px var(--edge) inset}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);
vertical-align:middle}
th{font-size:13px;font-weight:600;color:var(--faint);white-space:nowrap}
tr:last-child td{border-bottom:0}
.iou td{min-width:96px}.iou td:first-child{white-space:nowrap;min-width:0}
.iou .mean td{font-weight:650;border-bottom:2px solid var(--line)}
.iou .spare{min-width:80px;width:80px;padding-right:0}
.value{display:flex;align-items:center;gap:9px}
.value span{flex:none;width:40px;text-align:right}
.bar{flex:1;height:11px;border-radius:3px;background:var(--track);overflow:hidden}
.bar i{display:block;height:100%;border-radius:3px;box-shadow:0 0 0 1px var(--edge) inset}
.away{min-width:150px}.away span{width:auto;min-width:84px}
.away .bar{position:relative;min-width:60px}.away .bar i{position:absolute;top:0}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:9px;
vertical-align:-1px;box-shadow:0 0 0 1px var(--edge) inset}
.plain td{vertical-align:top;overflow-wrap:anywhere}
.plain td:first-child{white-space:nowrap}
.lines td{overflow-wrap:normal;white-space:nowrap}
.plain .doc{color:var(--faint);font-size:13px}
.alarm ul{margin:0;padding-left:20px}.alarm{border-color:var(--bad);background:var(--bad-soft)}
.sheet{margin-top:14px}
.sheet img{display:block;max-width:100%;border-radius:10px;border:1px solid var(--line)}
figcaption{margin:0 0 8px;font-size:14px;font-weight:600}
details{margin-top:12px}
summary{cursor:pointer;color:var(--accent);padding:4px 0}
footer{margin-top:44px;color:var(--faint);font-size:13px}
@media(max-width:640px){main{padding:18px 14px 40px}.head{grid-template-columns:1fr}
.big{font-size:46px}
.card{padding:14px}.sheet img{max-width:none;width:920px}
.plain:not(.lines) td:first-child{white-space:normal;overflow-wrap:normal}
.lines td:first-child{white-space:normal;min-width:110px}
svg.chart text{font-size:14px}.scroll>svg{width:720px}
.plain .doc{display:none}.iou .spare{display:none}
.iou td{min-width:0}.iou .value{gap:6px}.iou th{white-space:normal}.iou .bar{min-width:40px}}
@media print{:root{--page:#fff;--card:#fff;--ink:#111;--faint:#555;--line:#ccc;--grid:#ddd;
--track:#eee;--soft:#eef;--accent:#124;color-scheme:light}main{max-width:none;padding:0}
.card,figure,tr{break-inside:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
