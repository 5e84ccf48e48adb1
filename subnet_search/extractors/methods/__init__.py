"""One paper a file. Every module here is imported, so a file that calls `@register("name")` needs no other mention."""
