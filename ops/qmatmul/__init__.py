"""Products of matrices that are kept in few bits, each with a declared recipe.

x is [t d], w is [f d] (a row for each output, as checkpoints store it), and y = x w^T is [t f]. Both come as codes
and scales (`formats/`); where d falls into groups that have scales of their own, there are c of them.

Letters here: c groups of o columns each, d = c o; a and e rows of scales, for t / a rows of x and f / e of w each.

A product comes three times. `*_ref` is the ideal: every code at its exact value, all in float64. `*_recipe` in
`recipes.py` says in NumPy where float32 rounds: products of codes are exact, sums of them run in the order of d
within a group and then from group to group, and scales come in as written there. The JAX form follows the recipe
to the bit (checked on CPUs) as long as nothing leaves the range of normal float32.
"""
