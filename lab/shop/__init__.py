"""A small application on three servers, which one instant must have in common.

    customers (this host) -> web: nginx -> order service -> db: PostgreSQL with the orders
                                                         -> stock: MariaDB with the stock

An order is written to both databases, one after the other, without a distributed transaction. What must be true: every order
has its movement of stock, and every movement its order; what is left of an item and what went adds up; and every order that a
customer was told to be taken is there.
"""
