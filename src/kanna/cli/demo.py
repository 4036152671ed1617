"""kanna demo"""

from kanna.cli.session import Session, verb


@verb
def demo(session: Session) -> int | None:
    """Run the main job on a small model that comes with kanna, and show what is lost at each ratio."""
    from kanna.demo.run import demo as show

    return show()
