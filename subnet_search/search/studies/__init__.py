"""Operations on studies: start, continue, compare, repair."""
