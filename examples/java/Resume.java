// A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
//
// java examples/java/Resume.java http://127.0.0.1:8000 run-7
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.UUID;

public class Resume {
    static final String OCTETS = "application/octet-stream";
    static final HttpClient CLIENT = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();

    // One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, the creation a key.
    static HttpResponse<byte[]> call(HttpRequest request) throws IOException, InterruptedException {
        long until = System.nanoTime() + 60_000_000_000L;
        while (true) {
            boolean last = System.nanoTime() > until;
            long wait = 0;
            try {
                HttpResponse<byte[]> answer = CLIENT.send(request, BodyHandlers.ofByteArray());
                int status = answer.statusCode();
                if (last || (status != 408 && status != 429 && status != 503)) return answer;
                wait = 1000 * answer.headers().firstValueAsLong("Retry-After").orElse(0);
            } catch (IOException error) {
                if (last) throw error;
            }
            Thread.sleep(wait + 100 + (long) (400 * Math.random()));
        }
    }

    // The answer, or the end of the program with the server's words.
    static HttpResponse<byte[]> wanted(HttpResponse<byte[]> answer) throws IOException {
        if (answer.statusCode() >= 300) throw new IOException(new String(answer.body(), "UTF-8"));
        return answer;
    }

    static HttpRequest.Builder to(String address) {
        return HttpRequest.newBuilder(URI.create(address)).timeout(Duration.ofSeconds(60)).header("Accept", OCTETS);
    }

    static String header(HttpResponse<byte[]> answer, String name) {
        return answer.headers().firstValue(name).orElse(null);
    }

    // A ByteBuffer is big-endian until it is told.
    static double[] decode(HttpResponse<byte[]> answer) {
        double[] values = new double[answer.body().length / 8];
        ByteBuffer.wrap(answer.body()).order(ByteOrder.LITTLE_ENDIAN).asDoubleBuffer().get(values);
        return values;
    }

    public static void main(String[] words) throws IOException, InterruptedException {
        String sessions = words[0] + "/v1/sessions", name = words[1];
        String start = "{\"name\": \"" + name + "\", \"parameters\": [-1.2, 1.0], \"optimizer\": {\"name\": \"adam\", "
            + "\"lr\": 0.3, \"stop\": {\"target_loss\": 0.1, \"max_steps\": 1000}}}";
        HttpRequest.Builder creation = HttpRequest.newBuilder(URI.create(sessions)).timeout(Duration.ofSeconds(60));
        creation.header("Content-Type", "application/json").header("Idempotency-Key", UUID.randomUUID().toString());
        HttpResponse<byte[]> made = call(creation.POST(BodyPublishers.ofString(start)).build());
        if (made.statusCode() != 409) wanted(made); // 409 session_exists: this run has begun already

        String session = sessions + "/" + name;
        HttpResponse<byte[]> answer = wanted(call(to(session + "/parameters").build()));
        while (header(answer, "Adamd-Stop") == null) {
            double[] at = decode(answer);
            double a = 1 - at[0], t = at[1] - at[0] * at[0], loss = a * a + 100 * (t * t);
            ByteBuffer gradient = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN);
            gradient.putDouble(-2 * a - 400 * at[0] * t).putDouble(200 * t);
            long step = Long.parseLong(header(answer, "Adamd-Step")) + 1;
            HttpRequest.Builder next = to(session + "/steps/" + step).header("Content-Type", OCTETS);
            next.header("If-Match", header(answer, "ETag")).header("Adamd-Metrics", "{\"loss\": " + loss + "}");
            answer = wanted(call(next.PUT(BodyPublishers.ofByteArray(gradient.array())).build()));
            double[] now = decode(answer);
            System.out.println(step + " " + loss + " " + now[0] + " " + now[1]);
        }
        System.out.println("stop " + header(answer, "Adamd-Stop"));
    }
}
