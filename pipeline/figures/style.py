"""How the page looks: one style sheet, light and dark, that reads as well at 375 pixels as on a large screen.

A text is as wide as one reads it, pictures take the room there is, and what cannot be narrow (tables, maps, commands) scrolls
in a box of its own. Colours are those of the other figures (page.py).
"""

from __future__ import annotations

from pipeline.figures.page import ACCENT, INK, LINE, PAPER, SOFT

LEVELS = 20  # shades of a map's cell, lengths of a bar: classes s0 ... s20, 5 % each

STYLE = (
    f":root{{--paper:{PAPER};--ink:{INK};--soft:{SOFT};--line:{LINE};--accent:{ACCENT};--well:#F1EFE9;--unlit:#A39E93}}"
    """
@media (prefers-color-scheme:dark){:root{--paper:#16171A;--ink:#E9E6DF;--soft:#A09C93;--line:#34353A;--accent:#FF8A4C;
--well:#202226;--unlit:#5E5B55}}
:root{color-scheme:light dark}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1.0625rem/1.55 Charter,"Bitstream Charter","Iowan Old Style",
"Source Serif 4",Georgia,serif;overflow-wrap:anywhere}
header,main{max-width:70rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:clamp(1.75rem,6vw,4rem)}
main{padding-bottom:4rem}
h1,h2,h3{line-height:1.2;text-wrap:balance}
h1{font-size:clamp(1.8rem,1.2rem + 2.6vw,2.9rem);letter-spacing:-.015em;margin:0 0 .75rem}
h2{font-size:1.5rem;letter-spacing:-.01em;margin:0 0 .4rem}
h3{font-size:1.0625rem;margin:1.6rem 0 .5rem}
p{margin:0 0 1rem;max-width:42rem}
a{color:inherit;text-decoration-color:var(--accent);text-underline-offset:.2em}
a:hover{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.25rem;margin:1.25rem 0 0;padding:0;list-style:none;font-size:.95rem}
section{border-top:1px solid var(--line);margin-top:2.5rem;padding-top:2rem;scroll-margin-top:1rem}
.note,small{color:var(--soft)}
.note{font-size:.92rem}
.scroll{overflow-x:auto;margin:0 0 1rem;max-width:100%}
table{border-collapse:collapse;font-size:.95rem;font-variant-numeric:tabular-nums lining-nums}
th,td{padding:.4rem .9rem .4rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th,td,pre{overflow-wrap:normal}
th{font-weight:600}
@media(max-width:40rem){table{font-size:.88rem}td.right{white-space:normal;min-width:5.6rem}}
td{min-width:4rem}
td:first-child{min-width:9rem}
.right{text-align:right;white-space:nowrap}
:is(th,td):last-child{padding-right:0}
pre{background:var(--well);border-radius:6px;padding:.9rem 1rem;font:.84rem/1.6 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--least)),1fr));gap:1.6rem 1.75rem;margin:1rem 0}
.n1{--least:9rem;--tiles:1}.n2{--least:17rem;--tiles:2}.n3{--least:20rem;--tiles:3}.n4{--least:24rem;--tiles:4}
.nany{--least:100%}
.tiles{display:grid;gap:.5rem;grid-template-columns:repeat(var(--tiles),minmax(0,1fr))}
.nany .tiles{grid-template-columns:repeat(auto-fill,minmax(6.4rem,1fr))}
.above{--least:24rem;gap:1.1rem 1.75rem}
.above .tiles{max-width:calc(var(--tiles)*8.5rem)}
.above.nany{--least:100%}
.above.nany .tiles{max-width:none}
.above+.above{border-top:1px solid var(--line);padding-top:1.3rem;margin-top:1.3rem}
.films{grid-template-columns:repeat(2,minmax(0,1fr))}
@media(min-width:48rem){.films{grid-template-columns:repeat(3,minmax(0,1fr));max-width:56rem}}
figure{margin:0}
.tile img,.film{display:block;width:100%;height:auto;background:var(--well);border-radius:3px;image-rendering:pixelated}
small{display:block;font-size:.82rem;line-height:1.35;margin-top:.25rem}
figcaption{margin-top:.45rem;line-height:1.4;text-wrap:balance}
.above figcaption{margin:0 0 .45rem}
mark{background:none;color:var(--accent);font-weight:600}
.film{aspect-ratio:1;object-fit:cover;object-position:100% 0}
.said{font-weight:600;line-height:1.45}
.said span{color:color-mix(in oklab,var(--accent) var(--lit,100%),var(--unlit))}
.map{font-size:.9rem;border-spacing:2px;border-collapse:separate}
.map :is(th,td){border:0;padding:0;min-width:0;vertical-align:middle}
.map thead th:last-child{padding-left:.75rem}
.map thead th{font-weight:400;font-size:.78rem;color:var(--soft);text-align:left;vertical-align:bottom}
.map tbody th{font-weight:400;text-align:right;padding-right:.6rem;white-space:nowrap;position:sticky;left:0;background:var(--paper)}
.map img{display:block;width:100%;max-width:4.4rem;height:auto;image-rendering:pixelated;border-radius:2px}
.map td{height:1.55rem;min-width:1.15rem;background:color-mix(in oklab,var(--accent) calc(var(--n)*5%),var(--well))}
.map .roomy td{min-width:3.6rem}
.map td.mean{min-width:9.5rem;padding-left:.75rem;white-space:nowrap;font-size:.85rem;color:var(--soft);background:none}
.mean::before{content:"";display:inline-block;height:.7em;margin-right:.4rem;background:var(--accent);width:calc(var(--n)*.3rem)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.5rem}
.charts img{display:block;width:100%;height:auto;max-width:34rem}
.pause{font-size:.92rem;color:var(--soft);display:inline-flex;gap:.45rem;align-items:center;min-height:2rem}
section:has(.pause :checked) *{animation-play-state:paused!important}
@media (prefers-reduced-motion:reduce){.film,.said span{animation:none!important}.pause{display:none}}
@media print{section{break-inside:avoid-page}.pause,nav{display:none}}
""" + "".join(f".s{level}{{--n:{level}}}" for level in range(LEVELS + 1))
)
