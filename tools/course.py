"""Run every notebook at classroom scale and write build/course/index.html with all of them rendered.

    python tools/course.py          # all
    python tools/course.py 02 A1    # those whose names begin so

A notebook that fails is rendered as far as it came, and named at the end; then the exit status is 1.
"""

import base64
import html
import re
import sys
import time
from string import Template

import book
import nbformat
from nbconvert import HTMLExporter

OUT = book.ROOT / "build" / "course"

PAGE = Template((book.ROOT / "tools" / "index.html").read_text(encoding="utf-8"))
# Source that a notebook shows is Markdown, for which the template forgets the font of code.
FONT = "<style>.jp-RenderedMarkdown pre, .jp-RenderedMarkdown pre * {font-family: var(--jp-code-font-family)}</style>"
BAR = '<nav style="font: 15px system-ui, sans-serif; padding: .7rem 1.2rem; background: #1f2933">{}</nav>'
LINK = '<a style="color: #cfe3ff; margin-right: 1.5rem" href="{}">{}</a>'


def main(wanted):
    paths = [path for path in book.paths() if not wanted or path.name.startswith(tuple(wanted))]
    if not paths:
        sys.exit("there is no such notebook")
    OUT.mkdir(parents=True, exist_ok=True)
    chapters = []
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.stem:32}", end="", flush=True)
        chapter = run(path)
        print(f"{chapter['seconds']:6.0f} s  {'FAILED' if chapter['error'] else 'ok'}", flush=True)
        chapters.append(chapter)
    for number, chapter in enumerate(chapters):
        write_page(chapter, chapters[number - 1] if number else None, (chapters + [None])[number + 1])
    time_taken = duration(sum(chapter["seconds"] for chapter in chapters))
    page = PAGE.substitute(time=time_taken, cards="\n".join(map(card, chapters)))
    (OUT / "index.html").write_text(page, encoding="utf-8")
    print(f"The course: {(OUT / 'index.html').relative_to(book.ROOT)}")
    failed = [chapter for chapter in chapters if chapter["error"]]
    for chapter in failed:
        print(f"\n{chapter['name']} failed:\n{chapter['error']}")
    return 1 if failed else 0


def run(path):
    """Run one notebook; what the pages need to know of it."""
    notebook = book.read(path)
    start, error = time.perf_counter(), ""
    try:
        book.execute(notebook)
    except Exception as problem:  # the others shall run all the same; every problem is reported at the end
        error = plain(str(problem)).strip()
    seconds = time.perf_counter() - start
    book.strip(notebook)
    nbformat.write(notebook, OUT / path.name)
    return {"name": path.stem, "notebook": notebook, "seconds": seconds, "error": error}


def plain(text):
    """Text without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def write_page(chapter, before, after):
    """The notebook as HTML, with a bar of links above it."""
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(chapter["notebook"])
    title = html.escape(book.title(chapter["notebook"]))
    links = [LINK.format("index.html", "The course")]
    links += [LINK.format(f"{other['name']}.html", f"{arrow} {html.escape(book.title(other['notebook']))}")
              for other, arrow in ((before, "←"), (after, "→")) if other]
    body = re.sub(r"<title>.*?</title>", lambda _: f"<title>{title}</title>", body, count=1)
    body = re.sub(r"<body[^>]*>", lambda tag: tag[0] + FONT + BAR.format("".join(links)), body, count=1)
    (OUT / f"{chapter['name']}.html").write_text(body, encoding="utf-8")


def card(chapter):
    """What the index shows of a notebook."""
    notebook, name = chapter["notebook"], chapter["name"]
    picture = first_picture(notebook)
    if picture:
        (OUT / f"{name}.png").write_bytes(picture)
    image = f'<a href="{name}.html"><img src="{name}.png" alt=""></a>' if picture else "<span></span>"
    facts = [html.escape(book.running_time(notebook)), f"here: {duration(chapter['seconds'])}",
             f'<a href="{name}.html">read</a>', f'<a href="{name}.ipynb" download>notebook</a>']
    failed = f'<p class="failed">failed</p><pre>{html.escape(chapter["error"][-1500:])}</pre>'
    return f"""<article>{image}<div>
<h2><a href="{name}.html">{html.escape(book.title(notebook))}</a></h2>
<p>{html.escape(book.aim(notebook))}</p>
<p class="facts">{" · ".join(filter(None, facts))}</p>
{failed if chapter["error"] else ""}</div></article>"""


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def first_picture(notebook):
    """The first figure that the notebook shows, as PNG, or None."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
