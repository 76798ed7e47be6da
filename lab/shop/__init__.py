"""A small application on three servers, whose checkpoints must be of one instant.

    customers (this host) -> web: nginx -> order service -> db: PostgreSQL with the orders
                                                         -> stock: MariaDB with the stock

An order is written to both databases, one after the other, without a distributed transaction. These invariants must hold: every
order has its movement of stock, and every movement its order; the stock of an item plus its movements is constant; and every
order that was acknowledged to a customer exists.
"""
