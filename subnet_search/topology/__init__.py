"""Which units live: tensor mathematics only. Nothing here sees a module, an optimizer or data."""
