"""Reads a formula out of tokens, written in symbols, in words, or in both.

A recursive-descent parser over `expression > term > power > operand`, whose operands may also be
English frames such as "the sum of 3 and 4" or "subtract 2 from 9". It reads as far as it
understands; the caller judges what is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from typing import Final

from remit.inference.rules.arithmetic_cursor import Cursor, NoFormula
from remit.inference.rules.arithmetic_tokens import Token
from remit.inference.rules.arithmetic_words import (
    ADDITIVE,
    DENOMINATORS,
    MULTIPLES,
    MULTIPLICATIVE,
    PERCENT,
    POWERS,
    PRONOUNS,
    RELATIVE,
)
from remit.inference.rules.formula import Binary, Formula, Negative, Number, Operator
from remit.inference.rules.numerals import read_numeral, scale_of

_MAX_DEPTH: Final = 40
_EXACT: Final = Context(prec=200)
_ONE: Final = Number(Decimal(1))
_TWO: Final = Number(Decimal(2))
_THREE: Final = Number(Decimal(3))
_HUNDRED: Final = Number(Decimal(100))


class Grammar(Cursor):
    """Reads one formula that begins at `start`.

    `position` stands behind what was read. `strong` tells whether words were used that mean
    arithmetic and nothing else. An "and" at one of `separators` parts two numbers; any
    other may join the parts of one, as in "one hundred and five".
    """

    def __init__(self, tokens: Sequence[Token], start: int, separators: frozenset[int]) -> None:
        super().__init__(tokens, start)
        self._numeral_words = [
            "" if at in separators else word for at, word in enumerate(self.words)
        ]
        self._depth = 0
        self.strong = False

    def expression(self) -> Formula:
        """Sums and differences. Raises NoFormula."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NoFormula
        left = self._term()
        while True:
            begin = self.position
            if operator := self._operator(ADDITIVE):
                right = self._try(self._term)
                if right is None:
                    self.position = begin
                    break
                left = Binary(operator, left, right)
            elif operator := self._operator(RELATIVE):
                left = self._relative(left, operator)
            else:
                break
        self._depth -= 1
        return left

    def continued(self) -> Formula:
        """An expression and what is done to it next: "add 5 and 7, then double it"."""
        formula = self.expression()
        while (longer := self._continuation(formula)) is not None:
            formula = longer
        return formula

    def _continuation(self, base: Formula) -> Formula | None:
        begin = self.position
        self.take(",")
        if any(self.take(word) for word in ("and then", "then", "and")):
            for phrase, read in _CONTINUATIONS:
                if self.take(phrase):
                    formula = self._try(lambda read=read: read(self, base))  # type: ignore[misc]
                    if formula is not None and not self._goes_on():
                        return formula
                    break
        self.position = begin
        return None

    def _goes_on(self) -> bool:
        """Whether a list goes on: then "add 5 and 7" was meant, not "add 5 to it"."""
        begin = self.position
        separated = self.take(",") or self.take("and") or self.take("to")
        found = separated and self._starts_operand()
        self.position = begin
        return found

    def onto(self, base: Formula, operator: Operator, preposition: str) -> Formula:
        """The operand, then perhaps the base by a pronoun: "add 5 to it"."""
        operand = self.expression()
        begin = self.position
        if not (self.take(preposition) and self._pronoun()):
            self.position = begin
        self.strong = True
        return Binary(operator, base, operand)

    def by(self, base: Formula, operator: Operator) -> Formula:
        """Perhaps the base by a pronoun, then the operand: "multiply it by 5"."""
        self._pronoun()
        self.need("by")
        self.strong = True
        return Binary(operator, base, self.expression())

    def it(self, formula: Formula) -> Formula:
        """The base by a pronoun: "double it"."""
        if not self._pronoun():
            raise NoFormula
        return formula

    def _pronoun(self) -> bool:
        return any(self.take(word) for word in PRONOUNS)

    def _term(self) -> Formula:
        left = self._unary()
        while True:
            begin = self.position
            operator = self._operator(MULTIPLICATIVE) or self._modulo_sign()
            right = self._try(self._unary) if operator else None
            if operator is None or right is None:
                self.position = begin
                return left
            left = Binary(operator, left, right)

    def _unary(self) -> Formula:
        if self.take("-") or self.take("minus") or self.take("negative"):
            return Negative(self._unary())
        base = self._postfixed()
        begin = self.position
        if any(self.take_marked(phrase) for phrase in POWERS):
            exponent = self._try(self._unary)
            if exponent is not None:
                return Binary("**", base, exponent)
            self.position = begin
        return base

    def _postfixed(self) -> Formula:
        formula = self._operand()
        while True:
            if self.take_marked("squared"):
                formula = Binary("**", formula, _TWO)
            elif self.take_marked("cubed"):
                formula = Binary("**", formula, _THREE)
            elif (part := self._part_of(formula)) is not None:
                formula = part
            else:
                return formula

    def _part_of(self, share: Formula) -> Formula | None:
        """A share of something, such as "12% of 80", "12% off 80" or "three quarters of 80"."""
        begin = self.position
        if (denominator := self._denominator()) is not None:
            return Binary("/", Binary("*", share, self._unary()), denominator)
        sign = next((sign for sign in PERCENT if self.take(sign)), None)
        if sign is None:
            return None
        if self.take_marked("of"):
            return Binary("/", Binary("*", share, self._unary()), _HUNDRED)
        if self.take_marked("off"):
            kept = Binary("-", _HUNDRED, share)
            return Binary("/", Binary("*", self._unary(), kept), _HUNDRED)
        if sign == "%" and self._is_modulo(begin):
            self.position = begin
            return None
        return Binary("/", share, _HUNDRED)

    def _denominator(self) -> Number | None:
        begin = self.position
        word = self.word()
        value = DENOMINATORS.get(word, DENOMINATORS.get(word.removesuffix("s")))
        if value is not None:
            self.position += 1
            if self.take_marked("of"):
                return Number(Decimal(value))
        self.position = begin
        return None

    def _relative(self, base: Formula, operator: Operator) -> Formula:
        """`base` changed by an amount, or by a share of itself where a percent sign follows."""
        amount = self._operand()
        if any(self.take(sign) for sign in PERCENT):
            factor = Binary(operator, _HUNDRED, amount)
            return Binary("/", Binary("*", base, factor), _HUNDRED)
        return Binary(operator, base, amount)

    def _operand(self) -> Formula:
        self.take("the")
        if self.take("("):
            inner = self.expression()
            self.need(")")
            return inner
        if (number := self._number()) is not None:
            return number
        if self.take("√"):
            return Binary("**", self._operand(), _quotient(_ONE, _TWO))
        return self._frame()

    def _number(self) -> Number | None:
        if self.position < len(self.tokens) and self.tokens[self.position].kind == "number":
            value = self.tokens[self.position].value
            self.position += 1
            while (scale := scale_of(self.word())) is not None:
                value, self.position = _EXACT.multiply(value, Decimal(scale)), self.position + 1
            return Number(value)
        numeral = read_numeral(self._numeral_words, self.position)
        if numeral is None:
            return None
        value, self.position = numeral
        return Number(value)

    def _frame(self) -> Formula:
        """A formula in the imperative or as a noun phrase."""
        begin = self.position
        for phrase, read in _FRAMES:
            if self.take(phrase):
                formula = self._try(lambda read=read: read(self))  # type: ignore[misc]
                if formula is not None:
                    return formula
                self.position = begin
        raise NoFormula

    def folded(self, operator: Operator, *separators: str) -> Formula:
        """Operands of a list such as "3, 4 and 5", joined from the left."""
        items = self._items(separators)
        formula = items[0]
        for item in items[1:]:
            formula = Binary(operator, formula, item)
        self.strong = True
        return formula

    def mean(self) -> Formula:
        """The mean of a list."""
        items = self._items(())
        total = items[0]
        for item in items[1:]:
            total = Binary("+", total, item)
        self.strong = True
        return _quotient(total, Number(Decimal(len(items))))

    def pair(self, operator: Operator, *separators: str, swapped: bool = False) -> Formula:
        """Exactly two operands with one of the separators between them."""
        left = self.expression()
        if not any(self.take(separator) for separator in separators):
            raise NoFormula
        right = self.expression()
        self.strong = True
        return Binary(operator, right, left) if swapped else Binary(operator, left, right)

    def applied(self, wrap: Callable[[Formula], Formula], *, strong: bool = True) -> Formula:
        """One operand, after an optional "of"."""
        self.take("of")
        formula = wrap(self._unary())
        self.strong = self.strong or strong
        return formula

    def changed(self, operator: Operator) -> Formula:
        """A base and its change: "increase 80 by 12 percent"."""
        base = self.expression()
        self.need("by")
        self.strong = True
        return self._relative(base, operator)

    def remainder(self) -> Formula:
        """What a division leaves: "remainder when 17 is divided by 5"."""
        self.take("of")
        self.take("when")
        self.take("dividing")
        left = self._unary()
        self.take("is")
        if not (self.take("divided by") or self.take("by") or self.take("and")):
            raise NoFormula
        self.strong = True
        return Binary("%", left, self._unary())

    def _items(self, separators: Sequence[str]) -> list[Formula]:
        items = [self.expression()]
        while True:
            begin = self.position
            separated = self.take(",")
            separated = any(self.take(word) for word in ("and", *separators)) or separated
            item = self._try(self.expression) if separated else None
            if item is None:
                self.position = begin
                break
            items.append(item)
        if len(items) < 2:
            raise NoFormula
        return items

    def _operator(self, table: dict[str, Operator]) -> Operator | None:
        return next((table[phrase] for phrase in table if self.take_marked(phrase)), None)

    def _modulo_sign(self) -> Operator | None:
        return "%" if self.take("%") else None

    def _is_modulo(self, sign: int) -> bool:
        """Whether the % at `sign` divides: "17 % 5" and "17 % -5", yet not "17% - 5"."""
        attached = self.tokens[sign - 1].end == self.tokens[sign].start
        if not attached:
            self.take("-")
        return self._starts_operand()

    def _starts_operand(self) -> bool:
        begin, strong = self.position, self.strong
        found = self.word() != "the" and self._try(self._operand) is not None
        self.position, self.strong = begin, strong
        return found

    def _try(self, read: Callable[[], Formula]) -> Formula | None:
        begin, strong, depth = self.position, self.strong, self._depth
        try:
            return read()
        except NoFormula:
            self.position, self.strong, self._depth = begin, strong, depth
            return None


def _quotient(left: Formula, right: Formula) -> Formula:
    return Binary("/", left, right)


def _times(factor: int) -> Callable[[Grammar], Formula]:
    multiple = Number(Decimal(factor))
    return lambda g: g.applied(lambda operand: Binary("*", multiple, operand), strong=False)


def _share(denominator: int) -> Callable[[Grammar], Formula]:
    divisor = Number(Decimal(denominator))
    return lambda g: g.applied(lambda operand: _quotient(operand, divisor), strong=False)


def _power(exponent: Formula) -> Callable[[Grammar], Formula]:
    return lambda g: g.applied(lambda operand: Binary("**", operand, exponent))


_CONTINUATIONS: Final[tuple[tuple[str, Callable[[Grammar, Formula], Formula]], ...]] = (
    ("add", lambda g, base: g.onto(base, "+", "to")),
    ("subtract", lambda g, base: g.onto(base, "-", "from")),
    ("take", lambda g, base: g.onto(base, "-", "from")),
    ("multiply", lambda g, base: g.by(base, "*")),
    ("divide", lambda g, base: g.by(base, "/")),
    ("double", lambda g, base: g.it(Binary("*", _TWO, base))),
    ("triple", lambda g, base: g.it(Binary("*", _THREE, base))),
    ("halve", lambda g, base: g.it(_quotient(base, _TWO))),
    ("square", lambda g, base: g.it(Binary("**", base, _TWO))),
)
_FRAMES: Final[tuple[tuple[str, Callable[[Grammar], Formula]], ...]] = (
    ("add up", lambda g: g.folded("+")),
    ("add together", lambda g: g.folded("+")),
    ("add", lambda g: g.folded("+", "to", "plus", "with")),
    ("adding", lambda g: g.folded("+", "to", "plus", "with")),
    ("sum of", lambda g: g.folded("+")),
    ("sum up", lambda g: g.folded("+")),
    ("sum", lambda g: g.folded("+")),
    ("total of", lambda g: g.folded("+")),
    ("subtract", lambda g: g.pair("-", "from", swapped=True)),
    ("subtracting", lambda g: g.pair("-", "from", swapped=True)),
    ("deduct", lambda g: g.pair("-", "from", swapped=True)),
    ("take away", lambda g: g.pair("-", "from", swapped=True)),
    ("take", lambda g: g.pair("-", "away from", "from", swapped=True)),
    ("difference between", lambda g: g.pair("-", "and")),
    ("difference of", lambda g: g.pair("-", "and")),
    ("multiply", lambda g: g.folded("*", "by", "with", "times")),
    ("multiplying", lambda g: g.folded("*", "by", "with", "times")),
    ("product of", lambda g: g.folded("*")),
    ("divide", lambda g: g.pair("/", "by")),
    ("dividing", lambda g: g.pair("/", "by")),
    ("quotient of", lambda g: g.pair("/", "and", "by")),
    ("average of", lambda g: g.mean()),
    ("mean of", lambda g: g.mean()),
    ("square root", _power(Number(Decimal("0.5")))),
    ("cube root", _power(_quotient(_ONE, _THREE))),
    ("square of", _power(_TWO)),
    ("cube of", _power(_THREE)),
    ("remainder", lambda g: g.remainder()),
    ("increase", lambda g: g.changed("+")),
    ("raise", lambda g: g.changed("+")),
    ("decrease", lambda g: g.changed("-")),
    ("reduce", lambda g: g.changed("-")),
    ("half", _share(2)),
    ("a half", _share(2)),
    ("a third of", _share(3)),
    ("one third of", _share(3)),
    ("a quarter of", _share(4)),
    *((word, _times(factor)) for word, factor in MULTIPLES.items()),
)
