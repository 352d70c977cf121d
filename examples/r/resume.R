# A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
#
# Rscript examples/r/resume.R http://127.0.0.1:8000 run-7        (needs the package curl)
library(curl)

arguments <- commandArgs(trailingOnly = TRUE)
sessions <- paste0(arguments[1], "/v1/sessions")
here <- paste0(sessions, "/", arguments[2])
octets <- "application/octet-stream"

# One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, the creation a key.
call <- function(method, url, body = NULL, ...) {
  until <- Sys.time() + 60
  repeat {
    request <- new_handle(customrequest = method)
    handle_setheaders(request, ...)
    if (!is.null(body)) handle_setopt(request, postfields = body, postfieldsize = length(body))
    answer <- tryCatch(curl_fetch_memory(url, request), error = function(e) e)
    if (!inherits(answer, "error") && !(answer$status_code %in% c(408, 429, 503))) break
    if (Sys.time() > until) stop("no answer from ", url)
    Sys.sleep(runif(1, 0.1, 0.5))
  }
  if (answer$status_code >= 300 && !grepl("session_exists", rawToChar(answer$content))) stop(rawToChar(answer$content))
  list(body = answer$content, headers = parse_headers_list(answer$headers))  # their names in lower case
}

encode <- function(values) writeBin(as.double(values), raw(), size = 8, endian = "little")
decode <- function(bytes) readBin(bytes, "double", n = length(bytes) / 8, size = 8, endian = "little")

loss_and_gradient <- function(p) {
  x <- p[1]
  y <- p[2]
  a <- 1 - x
  t <- y - x * x
  list(loss = a * a + 100 * (t * t), gradient = c(-2 * a - 400 * x * t, 200 * t))
}

start <- sprintf('{"name": "%s", "parameters": [-1.2, 1.0], "optimizer": {"name": "adam", "lr": 0.3,
  "stop": {"target_loss": 0.1, "max_steps": 1000}}}', arguments[2])
key <- sprintf("%s-%d-%.0f", arguments[2], Sys.getpid(), 1e6 * as.numeric(Sys.time()))
# A 409 session_exists: this run has begun already.
invisible(call("POST", sessions, charToRaw(start), "Content-Type" = "application/json", "Idempotency-Key" = key))

answer <- call("GET", paste0(here, "/parameters"), Accept = octets)
while (is.null(answer$headers[["adamd-stop"]])) {
  now <- loss_and_gradient(decode(answer$body))
  step <- as.numeric(answer$headers[["adamd-step"]]) + 1
  answer <- call("PUT", sprintf("%s/steps/%.0f", here, step), encode(now$gradient),
    "Content-Type" = octets, Accept = octets, "If-Match" = answer$headers[["etag"]],
    "Adamd-Metrics" = sprintf('{"loss": %.17g}', now$loss))
  cat(sprintf("%.0f %.17g", step, now$loss), sprintf("%.17g", decode(answer$body)), "\n")
}
cat("stop", answer$headers[["adamd-stop"]], "\n")
