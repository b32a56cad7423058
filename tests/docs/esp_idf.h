/* The parts of ESP-IDF 5, its components and mbedtls 3 that docs/firmware.md uses, declared as their headers do, so
   that the examples can be compiled here. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int esp_err_t;
enum { ESP_OK };

/* nvs.h */
typedef uint32_t nvs_handle_t;
typedef enum { NVS_READONLY, NVS_READWRITE } nvs_open_mode_t;
esp_err_t nvs_open(const char *name, nvs_open_mode_t mode, nvs_handle_t *handle);
esp_err_t nvs_get_str(nvs_handle_t handle, const char *key, char *value, size_t *length);
esp_err_t nvs_set_str(nvs_handle_t handle, const char *key, const char *value);
esp_err_t nvs_commit(nvs_handle_t handle);
void nvs_close(nvs_handle_t handle);

/* esp_wifi.h, esp_netif_ip_addr.h, esp_random.h, freertos/task.h */
typedef enum { WIFI_PS_NONE, WIFI_PS_MIN_MODEM } wifi_ps_type_t;
esp_err_t esp_wifi_set_ps(wifi_ps_type_t type);
typedef struct { uint32_t addr; } esp_ip4_addr_t;
typedef struct { union { esp_ip4_addr_t ip4; } u_addr; uint8_t type; } esp_ip_addr_t;
enum { ESP_IPADDR_TYPE_V4 };
char *esp_ip4addr_ntoa(const esp_ip4_addr_t *addr, char *buf, int buflen);
uint32_t esp_random(void);
typedef uint32_t TickType_t;
#define pdMS_TO_TICKS(milliseconds) ((TickType_t)(milliseconds))
void vTaskDelay(TickType_t ticks);

/* mdns.h */
typedef struct { const char *key; const char *value; } mdns_txt_item_t;
typedef struct mdns_ip_addr_s { esp_ip_addr_t addr; struct mdns_ip_addr_s *next; } mdns_ip_addr_t;
typedef struct mdns_result_s {
    struct mdns_result_s *next;
    char *instance_name, *hostname;
    uint16_t port;
    mdns_txt_item_t *txt;
    size_t txt_count;
    mdns_ip_addr_t *addr;
} mdns_result_t;
esp_err_t mdns_query_ptr(const char *type, const char *proto, uint32_t timeout, size_t max, mdns_result_t **results);
void mdns_query_results_free(mdns_result_t *results);
typedef struct mdns_browse_s mdns_browse_t;
typedef void (*mdns_browse_notify_t)(mdns_result_t *result);
mdns_browse_t *mdns_browse_new(const char *service, const char *proto, mdns_browse_notify_t notifier);

/* cJSON.h */
typedef struct cJSON { struct cJSON *next; char *valuestring; int valueint; } cJSON;
cJSON *cJSON_Parse(const char *value);
void cJSON_Delete(cJSON *item);
cJSON *cJSON_GetObjectItemCaseSensitive(const cJSON *object, const char *string);
int cJSON_IsString(const cJSON *item);
int cJSON_IsNumber(const cJSON *item);

/* esp_http_client.h */
typedef struct esp_http_client *esp_http_client_handle_t;
typedef enum { HTTP_METHOD_GET, HTTP_METHOD_POST } esp_http_client_method_t;
typedef struct {
    const char *url;
    esp_http_client_method_t method;
    int timeout_ms;
    esp_err_t (*crt_bundle_attach)(void *conf);
} esp_http_client_config_t;
esp_http_client_handle_t esp_http_client_init(const esp_http_client_config_t *config);
esp_err_t esp_http_client_set_header(esp_http_client_handle_t client, const char *key, const char *value);
esp_err_t esp_http_client_open(esp_http_client_handle_t client, int write_len);
int esp_http_client_write(esp_http_client_handle_t client, const char *buffer, int len);
int64_t esp_http_client_fetch_headers(esp_http_client_handle_t client);
int esp_http_client_get_status_code(esp_http_client_handle_t client);
int esp_http_client_read_response(esp_http_client_handle_t client, char *buffer, int len);
esp_err_t esp_http_client_cleanup(esp_http_client_handle_t client);

/* esp_websocket_client.h */
typedef const char *esp_event_base_t;
typedef void (*esp_event_handler_t)(void *arg, esp_event_base_t base, int32_t id, void *data);
typedef struct esp_websocket_client *esp_websocket_client_handle_t;
typedef enum {
    WEBSOCKET_EVENT_ANY = -1, WEBSOCKET_EVENT_ERROR, WEBSOCKET_EVENT_CONNECTED, WEBSOCKET_EVENT_DATA
} esp_websocket_event_id_t;
typedef enum { WEBSOCKET_ERROR_TYPE_NONE, WEBSOCKET_ERROR_TYPE_HANDSHAKE } esp_websocket_error_type_t;
typedef struct {
    esp_websocket_error_type_t error_type;
    int esp_ws_handshake_status_code;
} esp_websocket_error_codes_t;
typedef struct {
    const char *data_ptr;
    int data_len;
    esp_websocket_client_handle_t client;
    int payload_len, payload_offset;
    esp_websocket_error_codes_t error_handle;
} esp_websocket_event_data_t;
typedef struct {
    const char *uri, *headers;
    int buffer_size;
    bool disable_auto_reconnect, keep_alive_enable;
    int keep_alive_idle, keep_alive_interval, network_timeout_ms;
    size_t ping_interval_sec;
    esp_err_t (*crt_bundle_attach)(void *conf);
} esp_websocket_client_config_t;
esp_websocket_client_handle_t esp_websocket_client_init(const esp_websocket_client_config_t *config);
esp_err_t esp_websocket_register_events(esp_websocket_client_handle_t client, esp_websocket_event_id_t event,
                                        esp_event_handler_t handler, void *arg);
esp_err_t esp_websocket_client_start(esp_websocket_client_handle_t client);
esp_err_t esp_websocket_client_stop(esp_websocket_client_handle_t client);
esp_err_t esp_websocket_client_destroy(esp_websocket_client_handle_t client);
bool esp_websocket_client_is_connected(esp_websocket_client_handle_t client);
int esp_websocket_client_send_text(esp_websocket_client_handle_t client, const char *data, int len, TickType_t timeout);

/* mbedtls/ssl.h, mbedtls/sha256.h */
typedef struct { unsigned char *p; size_t len; } mbedtls_x509_buf;
typedef struct { mbedtls_x509_buf raw; } mbedtls_x509_crt;
typedef struct mbedtls_ssl_config mbedtls_ssl_config;
typedef struct mbedtls_x509_crl mbedtls_x509_crl;
#define MBEDTLS_ERR_X509_CERT_VERIFY_FAILED (-0x2700)
int mbedtls_sha256(const unsigned char *input, size_t length, unsigned char *output, int is224);
void mbedtls_x509_crt_init(mbedtls_x509_crt *certificate);
void mbedtls_ssl_conf_ca_chain(mbedtls_ssl_config *config, mbedtls_x509_crt *chain, mbedtls_x509_crl *revoked);
void mbedtls_ssl_conf_verify(mbedtls_ssl_config *config,
                             int (*verify)(void *, mbedtls_x509_crt *, int, uint32_t *), void *context);
