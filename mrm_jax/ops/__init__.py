"""Pure array functions: they hold no parameters and draw nothing for themselves."""
