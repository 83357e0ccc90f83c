"""Errors that the user can fix: the command line prints them as one sentence."""


class UserError(ValueError):
    """Something outside the program is wrong; the message says what, where and what to do."""


class ConfigError(UserError):
    """A configuration field is unknown, unused, out of range or contradicts another."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable or does not match the configuration."""


class TrainingError(UserError):
    """Training cannot continue, for example because the loss is not finite."""


class DataError(UserError):
    """A dataset, image or input worker is missing, unreadable or broken."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first line of an error's message, cut to `limit` characters; may be empty."""
    return str(error).strip().split("\n")[0][:limit]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun.

    Args:
      number: the number.
      noun: the noun for one.
      plural: the noun for any other number; None appends an s.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def size(count: int) -> str:
    """Returns a number of bytes in the largest unit below it."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
