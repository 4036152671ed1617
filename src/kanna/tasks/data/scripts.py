"""Scripts that put no spaces between words."""

import re

_SPACELESS = re.compile(
    "[\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u109f"  # Tibetan, Burmese
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
    "\uff00-\uff9f]"  # their wide signs
)


def goes_on_without_space(text: str) -> bool:
    """Whether what follows a text comes right behind it, as its last letter or wide sign says."""
    for sign in reversed(text):
        if _SPACELESS.match(sign):
            return True
        if sign.isalnum():
            return False
    return False
