"""Walking a lesson at a terminal: read a step, run it, see what came out."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from types import ModuleType

from rich.console import Console
from rich.markdown import Markdown
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from .exercises import exercises
from .lesson import Lesson, Step
from .values import description, is_array, outline

WIDEST = 100  # columns that are still read with ease
KEYS = "Enter {does}   b back   i NAME look at a value   q leave"


class Walk:
    """A lesson, how many of its steps were taken, and the values that they left.

    `ask` is given a prompt and returns what was typed, without the line break; EOFError means leave.
    """

    def __init__(self, lesson: Lesson, console: Console, ask: Callable[[str], str]):
        self.lesson, self.console, self.ask = lesson, console, ask
        self.taken, self.module = 0, lesson.module()

    def go(self) -> None:
        """Step until the end, or until told to leave."""
        while self.taken < len(self.lesson.steps):
            step = self.lesson.steps[self.taken]
            self.show(step)
            match self.choice(step):
                case "next":
                    if step.code is None or step.code.exercise or self.ran(step):
                        self.taken += 1
                case "back":
                    self.taken = max(self.taken - 1, 0)
                case "leave":
                    return
        self.console.print(Text(self.farewell(), style="bold"))

    def go_to(self, taken: int) -> None:
        """Take so many steps at once, saying nothing but what goes wrong."""
        for step in self.lesson.steps[:taken]:
            if step.code and not step.code.exercise:
                with contextlib.redirect_stdout(io.StringIO()):
                    self.lesson.run(step.code, self.module)
            self.taken += 1

    def run_all(self) -> None:
        """Show and run everything without asking; what goes wrong is raised."""
        for step in self.lesson.steps:
            self.show(step)
            if step.code and not step.code.exercise:
                self.run(step)
            self.taken += 1

    def show(self, step: Step) -> None:
        """The step as it is to be read."""
        self.console.print(
            Rule(f"{self.lesson.number}. {self.lesson.title}: {self.taken + 1} of {len(self.lesson.steps)}")
        )
        if step.prose:
            self.console.print(Markdown(step.prose.text), "")
        if step.code:
            text = self.stub(step) if step.code.exercise else step.code.text
            colours = Syntax("", "python", theme="ansi_dark", background_color="default")
            self.console.print(colours.highlight(text), soft_wrap=True)  # long lines are the terminal's to wrap

    def stub(self, step: Step) -> str:
        """Of an exercise, what is to be written."""
        return next(one.stub for one in exercises(self.lesson) if one.cell == step.code)

    def choice(self, step: Step) -> str:
        """next, back or leave; values are looked at in between."""
        does = "runs it" if step.code and not step.code.exercise else "goes on"
        self.console.print(Text(KEYS.format(does=does), style="dim"))
        while True:
            try:
                typed = self.ask("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return "leave"
            if typed in ("", "b", "q"):
                return {"": "next", "b": "back", "q": "leave"}[typed]
            if typed.startswith("i "):
                self.inspect(typed[2:].strip())
            else:
                self.console.print(Text(KEYS.format(does=does), style="dim"))

    def inspect(self, expression: str) -> None:
        """Show what an expression is worth, by the names that there are so far."""
        try:
            lines = description(eval(expression, dict(vars(self.module))))
        except Exception as error:  # whatever was typed
            lines = [f"{type(error).__name__}: {error}"]
        for line in lines:
            self.console.print(Text(line, style="green"))

    def ran(self, step: Step) -> bool:
        """Run a step's code, and say what it did; False if it did not come to its end."""
        try:
            self.run(step)
        except KeyboardInterrupt:
            self.console.print(Text("\nstopped; Enter runs it again", style="yellow"))
            return False
        except Exception as error:  # the lesson's own, on a machine that it does not fit
            first = next(
                (f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.lesson.path)), None
            )
            where = f"{self.lesson.path}, line {first.lineno}: " if first else ""
            self.console.print(Text(f"{where}{type(error).__name__}: {error}", style="red"))
            return False
        return True

    def run(self, step: Step) -> None:
        """Run a step's code, its output as it comes, then the shapes of the arrays that are new."""
        assert step.code is not None
        before = dict(vars(self.module))
        self.lesson.run(step.code, self.module)
        sys.stdout.flush()
        for line in new_arrays(before, self.module):
            self.console.print(Text(line, style="cyan"))
        self.console.print()

    def farewell(self) -> str:
        """The last line of a lesson that was walked to its end."""
        number, n = self.lesson.number, len(exercises(self.lesson))
        stubs = f"minillm tutorial {number} --stubs answers_{number}.py"
        return f"The end. {n} exercises wait; {stubs} writes a file for them."


def new_arrays(before: dict, module: ModuleType) -> list[str]:
    """A line for each name that has come to mean another array."""
    new = {name: one for name, one in vars(module).items() if is_array(one) and before.get(name) is not one}
    width = max((len(name) for name in new), default=0)
    return [f"{name:<{width}}  {outline(one)}" for name, one in new.items() if not name.startswith("_")]
