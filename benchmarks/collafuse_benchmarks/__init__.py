"""Measurements that ship with the product."""
