-- Whether an attempt was of a protected ref, from when it is signed on. Of those
-- that were signed before, the index does not know.
ALTER TABLE attempts ADD COLUMN protected boolean;
