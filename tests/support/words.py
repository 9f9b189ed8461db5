"""The words of code and documents: a lint for phrases to avoid, and a random sample to read.

python -m tests.support.words                     # print every hit in the project
python -m tests.support.words docs/guides         # print the hits in these files and folders
python -m tests.support.words --sample 200 --seed 1 robust_backbones classification tools
"""

import argparse
import ast
import io
import json
import random
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

# Phrase (a regular expression, whole words, case ignored) -> what to write instead. Words with a
# standard meaning in the field, such as sort, rate and radius, are no phrases.
PHRASES = {
    r"anew": "again, from scratch",
    r"(go|goes|went|going) on (with|where|from|by|at|in)": "resume, continue",
    r"told (apart|of|by|in|to)|is told|are told": "reported, distinguished",
    r"cannot be had": "could not be fetched",
    r"(is|are|be|was|were) (?-i:none)": "is invalid, does not exist",
    r"that is no|which is no|it is no|this is no": "is not a ...",
    r"(is|are) no (number|name|text|list|folder|file|image|path|dataset|COCO|VOC)": "is not a ...",
    r"(lies|lie|lay) (in|at|beside|there|here|on|under|outside|inside|elsewhere)(?! [\[(])": (
        "is in"
    ),
    r"beside": "next to, compared with",
    r"the very": "the same",
    r"mend(s|ed|ing)?": "fix",
    r"so many(?! \w+ that)": "N ..., at most N ...",
    r"left out": "excluded, skipped",
    r"what (it|they|he|one|we|you) (has|have|had|is|are|was|were|does|do|needs|need|finds|takes)": (
        "name the thing"
    ),
    r"what (has|have) (to|been)": "name the thing",
    r"whoever|whatever|whichever": "name the thing",
    r"(is|are|was|were) to be": "must be, or an imperative",
    r"that of|those of": "a compound noun or a verb",
    r"(is|are|was|were) of (a|an|the|one|its|their|other)(?! same)": "a verb or a compound noun",
    r"as (it|they) (stands?|lies?)": "unchanged",
    r"stands? (in(?! for)|there|here|at|beside|first|last|for itself)": "is in, is printed in",
    r"it says|says so|says it|says what|say what|saying what": "reports, states",
    r"knows? nothing|knows? of|nobody knows": "state the fact",
    r"such a thing|no such thing": "name the thing",
    r"thereof|therein|thereby|whereby|wherein|herein": "rephrase",
    r"whether or no": "whether",
    r"nought|naught": "zero",
    r"other than that": "otherwise",
    r"the like": "name the things",
    r"by itself alone|of itself": "rephrase",
    r"one of: ": "choose from",
    r"nobody|somebody": "a user, no user, or the actor",
    r"a sign of life|signs of life": "progress update",
    r"honest(ly|y)?": "unbiased, cross-fitted",
    r"luck(y)?": "selection bias, chance",
    r"(an|the|this|each|every|all|these|paper's|no|one) exhibits?": "table, figure",
    r"(a|the|one|no) judge|judges": "evaluation classifier",
    r"opinion": "prediction",
    r"hopeless": "below the pruning margin",
    r"data sets?": "dataset",
    r"aforesaid|aforementioned": "name the thing",
    r"of (its|their|our|your) own making|of another making": "not written by us",
    r"in vain": "without success",
    r"for good(?! \w)|once and for all": "permanently",
    r"as a rule(?! of)": "usually",
    r"by and by|little by little": "gradually",
    r"all the same": "anyway, also",
    r"none but|nothing but": "only",
    r"(a|the) copy the less|so much the (better|worse)": "rephrase",
}
# British spelling -> American, in identifiers as well.
SPELLINGS = {
    r"(\w*)(normal|optim|visual|initial|serial|recogn|organ|general|real|standard|random|parallel|regular|categor|summar|minim|maxim|custom|util|synchron|token|author|emphas|special|quant|local|vector|penal|final|central|neutral|equal|mean|harmon|character|crystal)is(e|ed|es|er|ers|ing|ation|ations)": (  # noqa: E501
        "-ize"
    ),
    r"(\w*)(col|neighb|behavi|fav|flav|hon|hum|lab)our(s|ed|ing|ite|able|less|ful)?": "-or",
    r"analys(e|ed|ing)": "analyze",  # "analyses" is also the plural of "analysis"
    r"(\w*)(label|model|cancel|travel|signal|tunnel|channel)l(ed|ing|er)": "single l",
    r"grey(s|scale|ish)?": "gray",
    r"centre(s|d)?": "center",
    r"(\w*_)?catalogue(s)?": "catalog",
    r"artefacts?": "artifact",
    r"judgement(s)?": "judgment",
    r"licence": "license",
    r"whilst|amongst|towards": "while, among, toward",
    r"programmes?": "program",
    r"metres?|litres?|theatres?": "-er",
    r"defence|offence|pretence": "-se",
}
# Everything that users and developers read.
PATHS = ("robust_backbones", "classification", "tools", "configs", "docs")
PATHS += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PHRASE = {
    re.compile(rf"(?<![\w-])(?:{p})(?![\w-])" if p[-1] != " " else p, re.I): w
    for p, w in PHRASES.items()
}
SPELLING = {re.compile(rf"(?<![a-z])(?:{p})(?![a-z])", re.I): w for p, w in SPELLINGS.items()}


@dataclass(frozen=True)
class Text:
    """A text of a file. Its kind is comment, docstring, message, identifier or document."""

    file: str
    line: int
    kind: str
    text: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.kind}: {self.text}"


def texts(path: Path) -> Iterator[Text]:
    """Texts of a Python file, comments of a YAML file, or paragraphs of a document or notebook.

    Inline code in documents is skipped, because it may quote old names, such as `--normalisation`.
    """
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _python(str(path), source)
    elif path.suffix in (".yaml", ".toml", ".in"):
        lines = ((n, line.split("#", 1)[1]) for n, line in _numbered(source) if "#" in line)
        yield from _blocks(str(path), "comment", lines)
    else:
        if path.suffix == ".ipynb":
            cells = json.loads(source)["cells"]
            prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
            source = "\n\n".join(prose)
        lines = ((n, re.sub(r"`[^`]+`", "``", line)) for n, line in _numbered(source))
        yield from _blocks(str(path), "document", lines)


def _numbered(source: str) -> Iterator[tuple[int, str]]:
    return enumerate(source.splitlines(), 1)


def _blocks(file: str, kind: str, lines: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Join consecutive lines to one text. An empty line ends it."""
    block: list[tuple[int, str]] = []
    for number, line in (*lines, (sys.maxsize, "")):
        if block and (number != block[-1][0] + 1 or not line.strip()):
            yield Text(file, block[0][0], kind, " ".join(text for _, text in block))
            block = []
        if text := line.strip():
            block.append((number, text))


def _python(file: str, source: str) -> Iterator[Text]:
    tree = ast.parse(source)
    docstrings = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            ast.get_docstring(node) is not None
        ):
            docstrings[id(node.body[0].value)] = node.body[0].value
    for node in docstrings.values():
        for number, part in enumerate(re.split(r"\n\s*\n", node.value)):
            above = node.value.split(part)[0].count("\n") if number else 0
            yield Text(file, node.lineno + above, "docstring", " ".join(part.split()))
    inside = set()  # strings that are parts of an f-string already seen
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(v) for v in node.values}
            text = "".join(
                str(v.value) if isinstance(v, ast.Constant) else "{...}" for v in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in docstrings and id(node) not in inside and " " in text.strip():
            yield Text(file, node.lineno, "message", " ".join(text.split()))
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append((token.start[0], token.string.lstrip("#! ")))
        elif token.type == tokenize.NAME:
            yield Text(file, token.start[0], "identifier", token.string)
    yield from _blocks(file, "comment", comments)


def hits(path: Path) -> Iterator[str]:
    """One line for each phrase to avoid: where it is and what to write instead."""
    seen = set()
    for text in texts(path):
        rules = SPELLING if text.kind == "identifier" else SPELLING | PHRASE
        for pattern, wanted in rules.items():
            for match in pattern.finditer(
                text.text.replace("_", " _ ").replace("`", "")
                if text.kind == "identifier"
                else text.text
            ):
                key = (text.line, text.kind, match[0])
                if key not in seen:
                    seen.add(key)
                    yield f"{text.file}:{text.line}: {text.kind}: '{match[0]}': write {wanted}"


def files(paths: list[Path]) -> list[Path]:
    """The texts among `paths`: files as given, and those below folders."""
    kinds = (".py", ".yaml", ".md", ".ipynb")
    found = []
    for path in paths:
        below = sorted(p for p in path.rglob("*") if p.suffix in kinds) if path.is_dir() else [path]
        found += [p for p in below if "__pycache__" not in p.parts]
    return found


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [ROOT / name for name in PATHS]
    parser.add_argument("paths", nargs="*", type=Path, default=everything)
    parser.add_argument("--sample", type=int, metavar="N", help="print N random texts instead")
    parser.add_argument("--seed", type=int, default=0, help="seed for the sample (default: 0)")
    args = parser.parse_args(argv)
    if args.sample:
        found = [
            text
            for path in files(args.paths)
            for text in texts(path)
            if text.kind in ("comment", "docstring", "message") and len(text.text.split()) > 3
        ]
        for text in random.Random(args.seed).sample(found, min(args.sample, len(found))):
            print(text)
        return 0
    found = [hit for path in files(args.paths) for hit in hits(path)]
    print("\n".join(found) or "no phrase to avoid")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
