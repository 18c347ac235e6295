"""MME's folders: one a subtask, with a text file of two questions for each picture."""

from __future__ import annotations

from mmframe.data.files import PICTURES
from mmframe.errors import UserError
from mmframe.tasks.readers.base import Files, Rows, broken


def read_mme(files: Files, folders: list[str]) -> Rows:
    """Rows of MME's release: `category`, `picture` (path), `name` (of the picture), `question`, `answer`.

    Texts lie beside the pictures, or (existence, count, position, color, posters...: as the release has it) in
    `questions_answers_YN/` with the pictures in `images/`.

    Args:
        files: Finds them.
        folders: The subtasks, in the official order; all must be there.
    """
    rows, places, found = [], [], []
    for category in folders:
        (folder,) = (path for path in [files.root and files.root / category])
        if folder is None or not folder.is_dir():
            raise UserError(f"there is no folder {files.place(category)}{files.hint}")
        inner = folder / "questions_answers_YN"
        texts, pictures = (inner, folder / "images") if inner.is_dir() else (folder, folder)
        named = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix.lower() in PICTURES}
        listed = sorted(path for path in texts.iterdir() if path.suffix == ".txt")
        if not listed:
            raise broken(folder, "it holds no .txt file with questions")
        for text in listed:
            if text.stem not in named:
                raise broken(text, f"there is no picture {text.stem}.jpg or .png in {pictures}")
            found.append(text)
            for number, line in enumerate(text.read_text(encoding="utf-8-sig").splitlines(), 1):
                if not line.strip():
                    continue
                question, tab, answer = line.rpartition("\t")
                if not tab:
                    raise broken(text, f"line {number} is no question and answer with a tab between them: {line!r:.60}")
                picture = named[text.stem]
                rows.append(
                    {
                        "file": text.stem,
                        "category": category,
                        "picture": picture,
                        "name": picture.name,
                        "line": number,
                        "question": question.strip(),
                        "answer": answer.strip(),
                    }
                )
                places.append(f"{text} line {number}")
    return Rows(rows, places, found)
