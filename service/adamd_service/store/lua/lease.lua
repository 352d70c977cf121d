-- Begins a reader's lease, by the store's own clock: garbage unnamed after this waits until it ends.
--
-- KEYS  1 readers
-- ARGV  1 nonce  2 lease  3 seconds that it lasts
-- Returns {nonce, "leased"}
redis.call('ZADD', KEYS[1], redis.call('TIME')[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], 'leased'}
