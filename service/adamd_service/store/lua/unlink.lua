-- Unlinks a part of what one entry of the garbage list names, if it is garbage here. The list was read earlier, maybe on
-- another connection, and a failover may have brought back a head that still names it.
--
-- KEYS  1 head   2 garbage   3… records to compare, then the keys to unlink
-- ARGV  1 nonce  2 the entry, as the list has it  3 kind: snapshot | records | everything | damaged
--       4 the snapshot's id, or the step of the last record
--       5 what to do with the entry: "" (keep it: there is more)  done  or the entry that takes its place
--       6… the attempts of the records, one for each
-- Returns {nonce, verdict}: unlinked | named (the head may need it) | gone (the list has no such entry)
--
-- The script that unnames something puts the entry into the list, in one move. So an entry in this list proves that
-- this history unnamed it. The head is compared all the same.
if not redis.call('LPOS', KEYS[2], ARGV[2]) then
  return {ARGV[1], 'gone'}
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  local head = redis.call('HMGET', KEYS[1], 'snapshots', 'log_first')
  local first, last = tonumber(head[2]), tonumber(ARGV[4])
  local free = {
    damaged = #KEYS == 2,
    snapshot = head[1] and not string.find(head[1], '"' .. ARGV[4] .. '"', 1, true),
    records = first and last and last < first,
  }
  if not free[ARGV[3]] then
    return {ARGV[1], 'named'}
  end
end
for i = 6, #ARGV do
  local attempt = redis.call('HGET', KEYS[i - 3], 'attempt')
  if attempt and attempt ~= ARGV[i] then
    return {ARGV[1], 'named'}
  end
end
for i = 3 + #ARGV - 5, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if ARGV[5] ~= '' then
  redis.call('LREM', KEYS[2], 1, ARGV[2])
  if ARGV[5] ~= 'done' then
    redis.call('RPUSH', KEYS[2], ARGV[5])
  end
end
return {ARGV[1], 'unlinked'}
