"""Questions on a picture and their answers, in the words that the models learn.

Every answer's first token already depends on the picture, and so do later ones: an answer that is decided in
prefill would tell nothing about what a cache still holds. `needed` names the patches an answer depends on.
"""

from dataclasses import dataclass, field

from pictures import COLOURS, GRID, SHAPES, patches_of

NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
           "fifteen sixteen").split()  # fmt: skip
ORDERS = ("row by row", "column by column", "from bottom to top", "from right to left")
PLURALS = {shape: shape + "es" if shape == "cross" else shape + "s" for shape in SHAPES}


@dataclass
class Question:
    task: str  # "caption", "questions", "reading"
    text: str
    answer: str
    score: str = "exact"  # or "items"
    needed: set = field(default_factory=set)  # patches; the second picture's start at GRID * GRID
    follow: str = None  # this question's text right after the one it is listed behind


def place(row, column):
    """As on a chess board, but from the top left: columns have letters, rows numbers."""
    return f"{'abcd'[column]}{row + 1}"


def patches(cells):
    return {patch for cell in cells for patch in patches_of(cell.box)}


def ordered(things, order):
    """`things` come row by row."""
    keys = {
        "row by row": lambda t: (t.row, t.column),
        "column by column": lambda t: (t.column, t.row),
        "from bottom to top": lambda t: (-t.row, t.column),
        "from right to left": lambda t: (-t.column, t.row),
    }
    return sorted(things, key=keys[order])


def caption(picture, rng, detailed=0.15):
    """A list of the objects in a commanded order; a share of them in whole sentences, up to 200 tokens long."""
    style, order = rng.random(), rng.choice(ORDERS)
    if style < detailed:
        text = f"Describe the objects {order}."
        item = "at {0} there is a {1.size} {1.shape} and its colour is {1.colour}"
    else:
        text, item = f"List the objects {order}.", "{0} {1}"
        if rng.random() < 0.1:
            order, text = "row by row", "Describe the image."
    things = ordered(picture.things, order)
    items = [item.format(place(t.row, t.column), t) for t in things]
    return Question("caption", text, ", ".join(items) + ".", "items", patches(things))


def nearby(picture, thing, direction):
    steps = {"right of": (0, 1), "left of": (0, -1), "above": (-1, 0), "below": (1, 0)}
    down, across = steps[direction]
    row, column = thing.row + down, thing.column + across
    inside = 0 <= row < picture.rows and 0 <= column < picture.columns
    return inside, (row, column), picture.at(row, column)


def name(thing):
    return f"{thing.colour} {thing.shape}"


def unique(things, key):
    """The things whose key no other one has."""
    keys = [key(t) for t in things]
    return [t for t, k in zip(things, keys) if keys.count(k) == 1]


def ask_cell(picture, rng):
    if rng.random() < 0.88:
        thing = rng.choice(picture.things)
        row, column = thing.row, thing.column
    else:
        row, column = rng.randrange(picture.rows), rng.randrange(picture.columns)
    thing = picture.at(row, column)
    question = Question("questions", f"What is at {place(row, column)}?", str(thing) if thing else "nothing")
    question.follow = f"And at {place(row, column)}?"
    question.needed = patches([thing]) if thing else set()
    return question


def ask_two_cells(picture, rng):
    if len(picture.things) < 2:
        return None
    a, b = rng.sample(picture.things, 2)
    text = f"What is at {place(a.row, a.column)} and at {place(b.row, b.column)}?"
    return Question("questions", text, f"{a} and {b}", needed=patches([a, b]))


def ask_where(picture, rng):
    found = unique(picture.things, name)
    if not found:
        return None
    thing = rng.choice(found)
    answer = f"{place(thing.row, thing.column)}, {thing.size}"
    return Question("questions", f"Where is the {name(thing)}?", answer, needed=patches([thing]),
                    follow=f"And the {name(thing)}?")  # fmt: skip


def ask_by_shape(picture, rng):
    found = unique(picture.things, lambda t: t.shape)
    if not found:
        return None
    thing = rng.choice(found)
    answer = f"{place(thing.row, thing.column)}, {thing.size} {thing.colour}"
    return Question("questions", f"What colour and size is the {thing.shape}?", answer, needed=patches([thing]),
                    follow=f"And the {thing.shape}?")  # fmt: skip


def ask_by_colour(picture, rng):
    found = unique(picture.things, lambda t: t.colour)
    if not found:
        return None
    thing = rng.choice(found)
    answer = f"{place(thing.row, thing.column)}, {thing.size} {thing.shape}"
    return Question("questions", f"What is the {thing.colour} object?", answer, needed=patches([thing]))


def ask_count(picture, rng):
    which = rng.randrange(3)
    if which == 0:
        colour = rng.choice(picture.things).colour if rng.random() < 0.9 else rng.choice(list(COLOURS))
        found = [t for t in picture.things if t.colour == colour]
        text = f"How many {colour} objects are there?"
    elif which == 1:
        shape = rng.choice(picture.things).shape if rng.random() < 0.9 else rng.choice(SHAPES)
        found = [t for t in picture.things if t.shape == shape]
        text = f"How many {PLURALS[shape]} are there?"
    else:
        size = rng.choice(("small", "large"))
        row = rng.randrange(picture.rows)
        found = [t for t in picture.things if t.size == size and t.row == row]
        text = f"How many {size} objects are in row {NUMBERS[row + 1]}?"
    items = [place(t.row, t.column) for t in found]
    answer = (", ".join(items) + ": " if items else "") + NUMBERS[len(found)]
    return Question("questions", text, answer, needed=patches(found))


def ask_neighbour(picture, rng):
    choices = []
    for thing in unique(picture.things, name):
        for direction in ("right of", "left of", "above", "below"):
            inside, at, other = nearby(picture, thing, direction)
            if inside and (other or rng.random() < 0.2):
                choices.append((thing, direction, at, other))
    if not choices:
        return None
    thing, direction, at, other = rng.choice(choices)
    needed = patches([thing, other] if other else [thing])
    answer = f"{place(*at)}, {other or 'nothing'}"
    return Question("questions", f"What is {direction} the {name(thing)}?", answer, needed=needed)


def ask_compare(picture, rng):
    found = unique(picture.things, name)
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    kinds = [
        k for k, x, y in (("size", a.size, b.size), ("row", a.row, b.row), ("column", a.column, b.column)) if x != y
    ]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "size":
        big, small = (a, b) if a.size == "large" else (b, a)
        want = rng.choice(("larger", "smaller"))
        text = f"Which is {want}, the {name(a)} or the {name(b)}?"
        answer = name(big if want == "larger" else small)
    elif kind == "row":
        text = f"Is the {name(a)} above or below the {name(b)}?"
        side = "above" if a.row < b.row else "below"
        answer = f"row {NUMBERS[a.row + 1]} and row {NUMBERS[b.row + 1]}, {side}"
    else:
        text = f"Is the {name(a)} left or right of the {name(b)}?"
        side = "left" if a.column < b.column else "right"
        answer = f"column {NUMBERS[a.column + 1]} and column {NUMBERS[b.column + 1]}, {side}"
    return Question("questions", text, answer, needed=patches([a, b]))


OBJECT_QUESTIONS = (ask_cell, ask_two_cells, ask_two_cells, ask_where, ask_by_shape, ask_by_colour, ask_count,
                    ask_count, ask_neighbour, ask_neighbour, ask_compare, ask_compare)  # fmt: skip


def look_up(picture, rng):
    """What stands at a place, or where something stands: what training begins with."""
    if picture.kind == "table":
        return ask_table_cell(picture, rng)
    if not picture.things:
        return ask_line(picture, rng)
    choices = (ask_cell, ask_cell, ask_two_cells, ask_two_cells, ask_by_colour, ask_by_colour, ask_by_shape,
               ask_by_shape, ask_where)  # fmt: skip
    return rng.choice(choices)(picture, rng) or ask_cell(picture, rng)


def ask_objects(picture, rng):
    question = None
    while question is None:
        question = rng.choice(OBJECT_QUESTIONS)(picture, rng)
    return question


def ask_line(picture, rng):
    entry = rng.choice(picture.entries)
    number = NUMBERS[entry.row + 1]
    return Question("reading", f"Read line {number}.", entry.text, needed=patches([entry]),
                    follow=f"And line {number}?")  # fmt: skip


def ask_lines(picture, rng):
    entries = picture.entries
    if rng.random() < 0.05:
        answer = ", ".join(f"{NUMBERS[e.row + 1]} {e.text}" for e in entries)
        return Question("reading", "Read all lines with their numbers.", answer, needed=patches(entries))
    choice = rng.random()
    if choice < 0.4:
        return ask_line(picture, rng)
    if choice < 0.6:
        entry = rng.choice(entries)
        return Question("reading", f"Read the {entry.colour} line.", entry.text, needed=patches([entry]),
                        follow=f"And the {entry.colour} line?")  # fmt: skip
    if choice < 0.8:
        text, chosen = "Read all lines.", entries
    else:
        text, chosen = "Read all lines from bottom to top.", entries[::-1]
    return Question("reading", text, ", ".join(e.text for e in chosen), needed=patches(entries))


def ask_table_cell(picture, rng):
    entry = rng.choice(picture.entries)
    where = place(entry.row, entry.column)
    return Question("reading", f"What stands at {where} in the table?", entry.text, needed=patches([entry]),
                    follow=f"And at {where}?")  # fmt: skip


def ask_table(picture, rng):
    entries = picture.entries
    if rng.random() < 0.05:
        order = rng.choice(("row by row", "column by column"))
        chosen = entries if order == "row by row" else sorted(entries, key=lambda e: (e.column, e.row))
        answer = ", ".join(f"{place(e.row, e.column)} {e.text}" for e in chosen)
        return Question("reading", f"Read the table {order} with places.", answer, needed=patches(chosen))
    choice = rng.random()
    if choice < 0.35:
        return ask_table_cell(picture, rng)
    if choice < 0.6:
        row = rng.randrange(picture.rows)
        text, chosen = f"Read row {NUMBERS[row + 1]} of the table.", [e for e in entries if e.row == row]
    elif choice < 0.85:
        column = rng.randrange(picture.columns)
        text = f"Read column {NUMBERS[column + 1]} of the table."
        chosen = [e for e in entries if e.column == column]
    elif choice < 0.93:
        text, chosen = "Read the table row by row.", entries
    else:
        text, chosen = "Read the table column by column.", sorted(entries, key=lambda e: (e.column, e.row))
    return Question("reading", text, ", ".join(e.text for e in chosen), needed=patches(chosen))


def ask(picture, rng, task=None):
    """A question of that task, or of any that suits the picture."""
    if task is None:
        task = "reading" if not picture.things else rng.choice(("questions", "reading"))
        if picture.kind == "grid":
            task = "questions"
    if task == "caption":
        return caption(picture, rng)
    if task == "questions":
        return ask_objects(picture, rng)
    return (ask_table if picture.kind == "table" else ask_lines)(picture, rng)


def ask_pair(pictures, rng, task=None):
    """A question on two pictures."""
    which = rng.randrange(2)
    question = ask(pictures[which], rng, task)
    question.text = f"In the {('first', 'second')[which]} picture: {question.text}"
    question.needed = {which * GRID * GRID + p for p in question.needed}
    return question


def conversation(picture, rng, task=None):
    """One to two turns on a picture: a list of questions."""
    turns = [ask(picture, rng, task)]
    if task != "caption" and turns[0].task != "caption" and rng.random() < 0.2:
        later = ask(picture, rng, task)
        if later.follow and turns[0].follow and later.text[:8] == turns[0].text[:8]:
            later.text = later.follow
        turns.append(later)
    return turns
