"""Answer questions about a picture."""

from __future__ import annotations

import argparse

from lavit_jax.cli.common import (
    TEXT_FIELDS,
    add_json,
    add_model,
    add_preset,
    add_seed,
    add_select,
    add_text,
    given,
    load_images,
    load_model,
    nonblank,
    print_json,
    working,
)

EXAMPLES = """\
examples:
  lavit answer hand.png "which skin tone?"
  lavit answer hand.png "which skin tone?" "what is this?" --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMG", help="a picture, of any common format")
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="about the picture")
    add_select(parser)
    add_preset(parser)
    add_text(parser)
    parser.add_argument(
        "--plain-question",
        action=argparse.BooleanOptionalAction,
        help='ask in lower case, without .!"()*#:;~ and in 50 words at most, as published',
    )
    add_seed(parser, "samples")
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    questions = [nonblank(question, "question") for question in args.questions]
    images = load_images([args.image])
    model = load_model(args.workdir, args.mesh)
    with working("answering"):
        answers = model.answer(
            images * len(questions),
            questions,
            select=args.select,
            seed=args.seed,
            preset=args.preset,
            **given(args, (*TEXT_FIELDS, "plain_question")),
        )
    if args.json:
        pairs = zip(questions, answers, strict=True)
        found = [{"question": question, "answer": answer} for question, answer in pairs]
        print_json({"image": args.image, "answers": found})
        return
    for question, answer in zip(questions, answers, strict=True):
        print(answer if len(answers) == 1 else f"{question} {answer}")
