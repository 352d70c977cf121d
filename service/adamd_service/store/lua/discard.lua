-- Unlinks chunks that were written and never named. What a script has named has no TTL any more, so it stays: the
-- caller may have asked a store that has been replaced since, and not know that its chunks are in use.
--
-- KEYS  1… chunks
-- ARGV  1 nonce
-- Returns {nonce, how many were unlinked}
local unlinked = 0
for i = 1, #KEYS do
  if redis.call('PTTL', KEYS[i]) >= 0 then
    unlinked = unlinked + redis.call('UNLINK', KEYS[i])
  end
end
return {ARGV[1], tostring(unlinked)}
