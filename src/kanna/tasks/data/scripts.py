"""Scripts that put no spaces between words."""

import re

_SPACELESS = re.compile(
    "[\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u109f"  # Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
    "\uff00-\uff9f]"  # their wide signs
)


def goes_on_without_space(before: str, after: str) -> bool:
    """Whether a text comes right behind another.

    It does behind a letter or wide sign of such a script. Where signs of other scripts stand between, as in
    an arrow or a colon, it does only if it begins in such a script itself.
    """
    if _SPACELESS.match(before[-1:]):
        return True
    last = next((sign for sign in reversed(before) if _SPACELESS.match(sign) or sign.isalnum()), "")
    return bool(_SPACELESS.match(last) and _SPACELESS.match(after[:1]))
