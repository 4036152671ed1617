"""From results to a page: `page` makes `blocks`, `html`, `markdown`, `console` draw them; knows no method."""
