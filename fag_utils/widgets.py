"""The demos. The photo demo: a page, in a notebook or served by Voila, on which everybody can try the networks; and
the mask demo: a face, a mask to drag over it, and what the networks say.

Pictures, names of files and predictions go between the browser and this program in messages, and lie in the memory
of both. Nothing is written to a disk, and nothing enters the widgets' state, which notebooks are saved with.
"""

import io
import itertools
from dataclasses import replace
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image, ImageDraw, ImageFont

from fag_utils import faces, labels, plots, predictor

LARGEST_UPLOAD = 100_000_000  # bytes
MOST_PHOTOS = 20  # kept in memory; the oldest goes when another comes
LEAST_SCORE = 0.3  # the slider for the face score begins here
PAGE_SIDE, SAVED_SIDE = 1280, 2560  # pixels: annotated pictures on the page, and when they are saved
PRIVACY = ("Your pictures stay in the memory of your browser and of the program behind this page. They are not "
           "written to any disk, and a saved notebook does not hold them.")
NO_FACE = ("No face was found. Try a lower face score, or a photograph in which faces look towards the camera and "
           "are at least 24 pixels high.")
HERE = Path(__file__).parent


def photo_demo(network="mobilefacenet_075_62"):
    """The page of a new PhotoDemo, to be shown as the last line of a cell; its attribute `demo` is the PhotoDemo."""
    return PhotoDemo(network).page


class Stage(anywidget.AnyWidget):
    """What is seen in the browser: the place for uploads, the annotated pictures, the tables.

    Messages from the browser (kind: what comes with it):
    ready; file: id, name, part, parts, and a buffer with that part; sample: name; detail: id, face;
    save_picture: id. Messages to it: status: text; photo: id, name, notes, error or people, and a buffer with a
    JPEG; detail: id, title, lines, caption, and two buffers with PNGs; save: name, type, and a buffer; forget;
    dropped: id.
    """

    _esm = (HERE / "photo_demo.js").read_text(encoding="utf-8")
    _css = (HERE / "photo_demo.css").read_text(encoding="utf-8")
    samples = traitlets.List(traitlets.Unicode()).tag(sync=True)
    privacy = traitlets.Unicode(PRIVACY).tag(sync=True)
    largest = traitlets.Int(LARGEST_UPLOAD).tag(sync=True)


class PhotoDemo:
    """The program behind the page.

    Attributes
    ----------
    page : the widget to display: sliders and buttons (ipywidgets) above the `stage`
    photos : dict of id -> Photo, in the order in which they came
    """

    def __init__(self, network="mobilefacenet_075_62"):
        import ipywidgets

        self.photos, self._arriving, self._networks, self._numbers = {}, {}, {}, itertools.count(1)
        wide = {"description_width": "initial"}
        self.network = ipywidgets.Dropdown(options=sorted(predictor.available_weights()), value=network,
                                           description="Network", style=wide, layout={"width": "270px"})
        self.score = ipywidgets.FloatSlider(
            value=0.5, min=LEAST_SCORE, max=1, step=0.05, description="Least face score", readout_format=".2f",
            continuous_update=False, style=wide, layout={"width": "330px"})
        self.share = ipywidgets.IntSlider(
            value=80, min=50, max=95, step=5, description="Age interval holds, %", continuous_update=False,
            style=wide, layout={"width": "330px"})
        self.save_table = ipywidgets.Button(description="Save table", tooltip="all faces as a csv file")
        self.forget_all = ipywidgets.Button(description="Forget all pictures")
        self.stage = Stage(samples=list(SAMPLES))
        self.stage.on_msg(self._receive)
        self.network.observe(self._on_network, "value")
        self.score.observe(self._on_setting, "value")
        self.share.observe(self._on_setting, "value")
        self.save_table.on_click(lambda _: self._save_table())
        self.forget_all.on_click(lambda _: self.forget())
        controls = [self.network, self.score, self.share, self.save_table, self.forget_all]
        row = {"flex_flow": "row wrap", "max_width": "960px", "margin": "0 0 6px"}
        self.page = ipywidgets.VBox([ipywidgets.Box(controls, layout=row), self.stage])
        self.page.demo = self

    # --- what can be done, from Python as well as from the page

    def add(self, name, source, id=None):
        """Take in a photograph (path, bytes, array), or say on the page why it can't be used."""
        photo = Photo(id or f"{name} {next(self._numbers)}", name)
        self._say(f"Looking for faces in {name} ...")
        try:
            look = self._predictor().look(source, LEAST_SCORE)
            photo.probabilities, photo.look = self._predictor().probabilities_of(look), look
        except faces.PictureError as error:
            photo.error = str(error).replace("the file", "This file", 1)
        except MemoryError:
            photo.error = "There is not enough memory for this picture. Save it smaller."
        except Exception as error:  # the page must hear of it, or it would wait for ever
            photo.error = f"This picture could not be examined ({type(error).__name__}: {error})."
        while len(self.photos) >= MOST_PHOTOS:
            oldest = next(iter(self.photos))
            del self.photos[oldest]
            self.stage.send({"kind": "dropped", "id": oldest})
        self.photos[photo.id] = photo
        self._show(photo)
        self._say("")
        return photo

    def people(self, photo):
        """The table of `predict_photo` for a Photo, as the sliders stand."""
        return photo.people(self._predictor(), self.score.value, self.share.value / 100)

    def table(self):
        """One DataFrame of all faces of all photographs: file, face, and the columns of `predict_photo`."""
        import pandas as pd

        tables = []
        for photo in self.photos.values():
            if photo.look:
                people = self.people(photo)
                people.insert(0, "face", range(1, len(people) + 1))
                people.insert(0, "file", photo.name)
                tables.append(people)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["file", "face"])

    def forget(self):
        """Drop all photographs, here and on the page."""
        self.photos.clear()
        self._arriving.clear()
        self.stage.send({"kind": "forget"})
        self._say("All pictures are forgotten.")

    # --- messages from the page

    def _receive(self, _, message, buffers):
        act = {"ready": self._ready, "file": self._file, "sample": self._sample, "detail": self._detail,
               "save_picture": self._save_picture}[message["kind"]]
        act(message, buffers)

    def _ready(self, message, buffers):
        for photo in self.photos.values():  # the page was opened again
            self._show(photo, again=True)

    def _file(self, message, buffers):
        parts = self._arriving.setdefault(message["id"], [])
        parts.append(bytes(buffers[0]))
        if len(parts) == message["parts"]:
            self.add(message["name"], b"".join(self._arriving.pop(message["id"])), message["id"])
        elif sum(map(len, parts)) > LARGEST_UPLOAD:  # a page of ours does not send that much
            del self._arriving[message["id"]]

    def _sample(self, message, buffers):
        self.add(message["name"], SAMPLES[message["name"]]())

    def _detail(self, message, buffers):
        photo, people = self.photos.get(message["id"]), None
        if photo and photo.look:
            people = self.people(photo)
        number = message["face"]
        if people is None or number > len(people):
            return
        row = people.index[number - 1]
        person, crop = people.loc[row], photo.look.crops[row]
        alone = _without_mirror(self._predictor())
        plain, mirrored = (alone.predict_crops([view]).iloc[0] for view in (crop, crop[:, ::-1]))
        belief = photo.probabilities["age"][row]
        lines = ["The hill shows how the network spreads its belief over the ages; the answer is its mean, after it "
                 "has been sharpened a little.",
                 f"As it is: {person_in_words(plain)}. Mirrored: {person_in_words(mirrored)}. The answer is made of "
                 f"both: {person_in_words(person)}.",
                 f"The interval from {person['age_low']:.0f} to {person['age_high']:.0f} holds "
                 f"{self.share.value} % of the belief."]
        if person["may_be_outside"]:
            lines.append(f"{outside_in_words(person).capitalize()}: the network knows only {labels.MIN_AGE} to "
                         f"{labels.MAX_AGE} years and answers with one of them for everybody.")
        size = len(crop)
        self.stage.send({"kind": "detail", "id": photo.id, "title": f"Face {number} of {photo.name}", "lines": lines,
                         "caption": f"All that the network sees: {size} x {size} pixels."},
                        [_file_of(Image.fromarray(crop), "PNG"), _figure(belief, person)])

    def _save_picture(self, message, buffers):
        photo = self.photos.get(message["id"])
        if photo and photo.look:
            picture = annotated(photo.look.picture, self.people(photo), SAVED_SIDE)
            self.stage.send({"kind": "save", "name": f"{Path(photo.name).stem} annotated.jpg", "type": "image/jpeg"},
                            [_file_of(picture, "JPEG", quality=85)])

    def _save_table(self):
        text = self.table().to_csv(index=False, float_format="%.4g")
        self.stage.send({"kind": "save", "name": "people.csv", "type": "text/csv"}, [text.encode("utf-8-sig")])

    # --- the controls

    def _predictor(self):
        name = self.network.value
        if name not in self._networks:
            self._say("Loading the network ...")
            self._networks[name] = predictor.load_predictor(name)
        return self._networks[name]

    def _on_network(self, change):
        told = self._predictor()
        for photo in self.photos.values():
            if photo.look:
                photo.look = replace(photo.look, crops=told.crops(photo.look.picture, photo.look.faces))
                photo.probabilities = told.probabilities_of(photo.look)
        self._on_setting(change)

    def _on_setting(self, change):
        for photo in self.photos.values():
            if photo.look:
                self._show(photo, again=True)
        self._say("")

    # --- messages to the page

    def _say(self, text):
        self.stage.send({"kind": "status", "text": text})

    def _show(self, photo, again=False):
        message = {"kind": "photo", "id": photo.id, "name": photo.name, "again": again, "notes": [], "people": []}
        if photo.error:
            self.stage.send({**message, "error": photo.error})
            return
        people = self.people(photo)
        height, width = photo.look.picture.shape[:2]
        columns = ["", "age", f"{self.share.value} % interval", "gender", "how sure"]
        masked = "masked_probability" in people
        columns += (["mask"] if masked else []) + ["face score", "remark"]
        rows = []
        for number, person in enumerate(people.to_dict("records"), 1):
            gender, sure = labels.gender_in_words(person["male_probability"])
            cells = [str(number), f"{person['age']:.0f}", f"{person['age_low']:.0f} to {person['age_high']:.0f}",
                     gender, f"{sure:.0%}"]
            if masked:
                cells.append(f"{'yes' if person['masked_probability'] >= 0.5 else 'no'}")
            cells += [f"{person['face_score']:.2f}", outside_in_words(person) if person["may_be_outside"] else ""]
            box = [person["x"] / width, person["y"] / height, person["width"] / width, person["height"] / height]
            rows.append({"face": number, "box": box, "cells": cells})
        message.update(notes=photo.look.notes, people=rows, columns=columns, none=NO_FACE)
        self.stage.send(message, [_file_of(annotated(photo.look.picture, people, PAGE_SIDE), "JPEG", quality=82)])


# --- the mask demo


def mask_demo(photo=None, networks=None):
    """The page of a new MaskDemo, to be shown as the last line of a cell; its attribute `demo` is the MaskDemo."""
    return MaskDemo(photo, networks).page


class MaskStage(anywidget.AnyWidget):
    """What is seen in the browser: the face with its mask, and a table.

    Messages from the browser: ready; move: right, down, how far the mask is from its place, as shares of the picture.
    Messages to it: face: right, down, reset (whether the program moved the mask), columns, rows, and a buffer with a
    JPEG.
    """

    _esm = (HERE / "mask_demo.js").read_text(encoding="utf-8")
    _css = (HERE / "photo_demo.css").read_text(encoding="utf-8")


class MaskDemo:
    """The program behind the page: a mask drawn over a face, and what each network says of it, bare and masked.

    photo : a photograph (path, bytes, array) whose largest face is used; None offers SAMPLES with a face
    networks : names of shipped networks; None asks all of them

    Attributes: `page`, the widget to display, and `stage`, what is below its controls. ValueError where the
    photograph shows no face.
    """

    SIDE, MARGIN = 360, 1.4  # of the picture on the page, and how much it shows around the crop

    def __init__(self, photo=None, networks=None):
        import ipywidgets

        from fag_utils import occlusion

        self.networks = {name: predictor.load_predictor(name) for name in networks or predictor.available_weights()}
        self._faces = {}
        self._seed, self._place = 1, (0.0, 0.0)
        wide = {"description_width": "initial"}

        def choice(label, options):
            made = ipywidgets.Dropdown(options=options, description=label, style=wide, layout={"width": "200px"})
            made.observe(lambda _: self.show(), "value")
            return made

        self.face = choice("Face", ["Yours"] if photo is not None else ["An astronaut", "Drawn people"])
        self._yours = photo
        self.kind = choice("Mask", [*occlusion.KINDS, "none"])
        self.colour = choice("Colour", ["any", *occlusion.COLOURS])
        self.pattern = choice("Pattern", ["any", *occlusion.PATTERNS])
        self.another = ipywidgets.Button(description="Another one")
        self.back = ipywidgets.Button(description="Back to its place")
        self.another.on_click(lambda _: self._draw_another())
        self.back.on_click(lambda _: self.move(0.0, 0.0, reset=True))
        self.stage = MaskStage()
        self.stage.on_msg(self._receive)
        row = {"flex_flow": "row wrap", "max_width": "960px", "margin": "0 0 6px"}
        controls = [self.face, self.kind, self.colour, self.pattern, self.another, self.back]
        self.page = ipywidgets.VBox([ipywidgets.Box(controls, layout=row), self.stage])
        self.page.demo = self
        self._look()  # a photograph without a face is refused at once

    def move(self, right, down, reset=False):
        """Put the mask so far from its place, as shares of the picture, and show it."""
        self._place = tuple(float(np.clip(value, -1, 1)) for value in (right, down))
        self.show(reset)

    def picture(self):
        """The face with the mask as it lies now: (360, 360, 3) uint8 RGB."""
        from fag_utils import occlusion

        bare, points = self._look()
        if self.kind.value == "none":
            return bare
        asked = {name: None if control.value == "any" else control.value
                 for name, control in (("colour", self.colour), ("pattern", self.pattern))}
        masks = occlusion.random_masks(1, [self._seed, 0], kind=self.kind.value, nose=True, **asked)
        for name, share in zip(("shift_right", "shift_down"), self._place, strict=True):
            masks[name] += share * self.MARGIN
        if self._place != (0.0, 0.0):
            masks["highest"] -= 10  # whoever drags a mask may cover the eyes
        drawn, _ = occlusion.draw(bare[None], masks, occlusion.framing(self.SIDE, self.MARGIN), points)
        return drawn.numpy()[0].round().astype("uint8")

    def table(self):
        """What the networks say: DataFrame with network, face ("bare" or "masked"), and columns of predict_crops."""
        import pandas as pd

        rows = []
        for name, network in self.networks.items():
            told = network.predict_crops([self._crop(self._look()[0]), self._crop(self.picture())])
            told.insert(0, "face", ["bare", "masked"])
            told.insert(0, "network", name)
            rows.append(told)
        return pd.concat(rows, ignore_index=True)

    def show(self, reset=False):
        """Send the face and the table to the page."""
        rows = []
        for answer in self.table().to_dict("records"):
            gender, sure = labels.gender_in_words(answer["male_probability"])
            rows.append([answer["network"], answer["face"], f"{answer['age']:.1f}",
                         f"{answer['age_low']:.0f} to {answer['age_high']:.0f}", f"{gender}, {sure:.0%}"])
        right, down = self._place
        message = {"kind": "face", "right": right, "down": down, "reset": reset, "rows": rows,
                   "columns": ["network", "face", "age", "80 % interval", "gender"]}
        self.stage.send(message, [_file_of(Image.fromarray(self.picture()), "JPEG", quality=90)])

    def _look(self):
        """The face without a mask, as the page shows it, and its landmarks in the frame."""
        name = self.face.value
        if name not in self._faces:
            if name == "Drawn people":
                from fag_utils.datasets import classroom

                picture = np.asarray(classroom.sample(1, seed=11, size=96)[0][0])
                points = faces.FOUND * len(picture)
            else:
                picture = faces.read_picture(SAMPLES[name]() if self._yours is None else self._yours)
                found = faces.detect(picture)
                if not len(found):
                    raise ValueError("No face was found on this photograph: choose another one.")
                points = faces.points_of(found.iloc[0])
            self._faces[name] = faces.crop_points(picture, points, self.SIDE, self.MARGIN), faces.in_frame(points)
        return self._faces[name]

    def _crop(self, picture):
        """What the network is shown of it: the frame."""
        edge = round(self.SIDE * (1 - 1 / self.MARGIN) / 2)
        return picture[edge : self.SIDE - edge, edge : self.SIDE - edge]

    def _draw_another(self):
        self._seed += 1
        self.show()

    def _receive(self, _, message, buffers):
        if message["kind"] == "move":
            self.move(message["right"], message["down"])
        else:  # the page was opened, or opened again
            self.show(reset=True)


# --- photographs and people


class Photo:
    """A photograph on the page: its Look and what the network believes of each face, or why it can't be used."""

    def __init__(self, id, name):
        self.id, self.name = id, name
        self.look = self.probabilities = self.error = None

    def people(self, told, min_score, share):
        """As `predict_photo`, the index being the row in `look.faces`."""
        people = told.people(self.look, self.probabilities, share)
        return people[people["face_score"] >= min_score]


def annotated(picture, people, side=None):
    """The picture with a numbered box round each face and, where there is room, what the network says of it.

    people : DataFrame of `predict_photo`; side : the longest side of the result in pixels, if smaller. Returns a
    PIL image.
    """
    image = Image.fromarray(picture)
    scale = min(1.0, side / max(image.size)) if side else 1.0
    if scale < 1:
        image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS,
                             reducing_gap=2.0)
    draw = ImageDraw.Draw(image)
    text_height = max(13, round(max(image.size) / 60))
    font = ImageFont.load_default(text_height)
    line = max(2, text_height // 7)
    for number, person in enumerate(people.to_dict("records"), 1):
        left, top = person["x"] * scale, person["y"] * scale
        right, bottom = left + person["width"] * scale, top + person["height"] * scale
        colour = plots.MEN if person["male_probability"] >= 0.5 else plots.WOMEN
        draw.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline=colour, width=line)
        gender, _ = labels.gender_in_words(person["male_probability"])
        text = f"{number}: {gender} {person['age']:.0f} ({person['age_low']:.0f} to {person['age_high']:.0f})"
        if draw.textlength(text, font) > 2.2 * (right - left):  # it would cover the neighbours
            text = str(number)
        width = draw.textlength(text, font) + 0.6 * text_height
        x = min(max(0, left), max(0, image.width - width))
        y = top - 1.3 * text_height if top > 1.3 * text_height else min(bottom, image.height - 1.3 * text_height)
        draw.rectangle((x, y, x + width, y + 1.3 * text_height), fill=colour)
        draw.text((x + 0.3 * text_height, y + 0.1 * text_height), text, font=font,
                  fill="white" if colour == plots.MEN else plots.DARK)
    return image


def person_in_words(person):
    gender, sure = labels.gender_in_words(person["male_probability"])
    return f"{person['age']:.1f} years, {gender} ({sure:.1%})"


def outside_in_words(person):
    """Of somebody who `may_be_outside`."""
    middle = (labels.MIN_AGE + labels.MAX_AGE) / 2
    return (f"may be under {labels.MIN_AGE}" if person["age"] < middle else f"may be over {labels.MAX_AGE}")


def _without_mirror(told):
    """The same network without its mirror image, so that the two answers can be told one by one."""
    alone = predictor.Predictor(told.model, told.card, mirror=False)
    alone.network = told.network  # compiled once
    return alone


def _file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _figure(belief, person):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 2.7), layout="constrained", dpi=110)
    ax = plots.age_distribution(belief, ax=figure.subplots())
    ax.axvline(person["age"], color=plots.RED, linestyle="--", label=f"the answer {person['age']:.1f}")
    ax.axvspan(person["age_low"], person["age_high"], color=plots.GREY, alpha=0.2, lw=0, zorder=0, label="interval")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


# --- photographs to begin with


def _astronaut():
    from skimage import data

    return data.astronaut()


def _cat():
    from skimage import data

    return data.chelsea()


def _drawn_people():
    """Twelve faces of nobody, in three rows, with a caption's worth of room between them."""
    from fag_utils.datasets import classroom

    drawn, _ = classroom.sample(12, seed=11, size=96)
    people = classroom.portrait(drawn, seed=11)
    return np.vstack([np.hstack(people[start : start + 6]) for start in range(0, 12, 6)])


SAMPLES = {"An astronaut": _astronaut, "Drawn people": _drawn_people, "A cat": _cat}
