"""A million prices a second: unary and boundary costs, their fit and their designs."""
