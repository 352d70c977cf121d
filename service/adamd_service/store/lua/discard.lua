-- Unlinks chunks that were written and never named. A chunk that a script has named has no TTL any more and stays: the
-- caller may not know that its commit went through on a store that has since been replaced.
--
-- KEYS  1… chunks
-- ARGV  1 nonce
-- Returns {nonce, how many were unlinked}
local nonce = ARGV[1]

local unlinked = 0
for _, chunk_key in ipairs(KEYS) do
  if redis.call('PTTL', chunk_key) >= 0 then
    unlinked = unlinked + redis.call('UNLINK', chunk_key)
  end
end
return {nonce, tostring(unlinked)}
