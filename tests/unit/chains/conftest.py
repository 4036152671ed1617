from families import bases, text

__all__ = ["bases", "text"]
