"""`calculator`: exact arithmetic, because language models guess digits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from remit.tools.arithmetic import evaluate
from remit.tools.context import ToolError
from remit.tools.definition import tool
from remit.tools.expression import MAX_CHARS, ExpressionError, parse


def _checked(expression: str) -> str:
    parse(expression)
    return expression


Expression = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_CHARS,
        description="The expression, such as `17 * 23`, `15% of 240`, `sqrt(2) ** 3` or "
        "`round(10 / 3, 2)`. Operators: + - * / // % ** ! and parentheses. Angles are in radians. "
        "Functions: abs, cbrt, ceil, cos, exp, factorial, floor, gcd, lcm, ln, log(x, base), max, "
        "mean, min, round(x, places), sin, sqrt, sum, tan, trunc. Constants: pi, e.",
    ),
    AfterValidator(_checked),
]


class Calculation(BaseModel):
    """The value as text, so that no digit is lost on the way."""

    result: str
    exact: bool
    fraction: str | None = None


@tool(permission_class="none", idempotent=True, timeout_s=5)
async def calculator(expression: Expression) -> dict[str, object]:
    """Evaluate an arithmetic expression exactly.

    Returns `result` as decimal text and `exact`: false where the result is rounded to 15 digits;
    then `fraction` holds the exact value if there is one.
    """
    try:
        answer = evaluate(parse(expression))
    except ExpressionError as error:
        message = f"the expression {error}"
        raise ToolError(message) from error
    calculation = Calculation(result=answer.text, exact=answer.exact, fraction=answer.fraction)
    return calculation.model_dump(exclude_none=True)
