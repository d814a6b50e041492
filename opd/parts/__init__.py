"""What methods are put together from: one kind of part per file, named after the slot that it fills.

sample      sample rounds memory curriculum twins pairs corpus offline   who writes the sequence
teach       views hints asks                                             what the reader is shown and asked
credit      credit groups magnitude reshape selection                    how answers become advantages
loss        losses support_losses hidden bridge contrasted channel skew  what is differentiated
mean        means                                                        what is averaged over what
            observe                                                      what is measured in passing
anywhere    fading                                                       numbers that fall from batch to batch

They know the types (rollout, rows, dist, protocols, method) and the formulas (maths, estimators, supports, shaping),
nothing above.
"""
